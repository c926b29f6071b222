"""A batcher around a fake model that can be held and made to fail."""

import asyncio
import contextlib
import threading

from services.runtime.batch import BatchSettings
from services.runtime.batcher import Batcher


class Model:
    """A fake model: item i of payload p becomes (p, i). It records its batches and can be held."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[object, int, int]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.fault = lambda parts: None
        self.prepared: list[object] = []

    def prepare(self, payload):
        self.prepared.append(payload)
        if payload == "unreadable":
            raise ValueError("unreadable")
        return payload

    def device(self, parts):
        self.batches.append([(part.prepared, part.start, part.stop) for part in parts])
        self.entered.set()
        assert self.gate.wait(60)
        self.fault(parts)
        return [[(part.prepared, item) for item in range(part.start, part.stop)] for part in parts]

    def finish(self, raw):
        return raw

    @property
    def items(self):
        return [(payload, item) for batch in self.batches for payload, a, b in batch for item in range(a, b)]


@contextlib.asynccontextmanager
async def batching(model=None, close=True, devices=1, **options):
    """One thread prepares, so that batches come to the device in the order in which they were cut."""
    model = model or Model()
    stages = {name: options.pop(name) for name in ("classify", "on_fatal") if name in options}
    batcher = Batcher(
        "test",
        BatchSettings(**{"max_batch": 8, "max_delay_s": 0, "prepare_threads": 1} | options),
        prepare=model.prepare,
        device=[model.device] * devices,
        finish=model.finish,
        **stages,
    )
    try:
        yield batcher, model
    finally:
        model.gate.set()
        if close:
            await asyncio.wait_for(batcher.close(), 60)


async def held(batcher, model, items=8):
    """Occupies the device and the ready slot behind it: what comes now must wait in the queue."""
    model.gate.clear()
    model.entered.clear()
    first = asyncio.create_task(batcher.submit("holder", items))
    assert await asyncio.to_thread(model.entered.wait, 60)
    second = asyncio.create_task(batcher.submit("holder", items))
    while batcher.waiting or len(model.prepared) < 2:  # noqa: ASYNC110 - the batcher announces neither
        await asyncio.sleep(0.001)
    return [first, second]


def answer(payload, items):
    return [(payload, item) for item in range(items)]


def flat(results):
    return [item for part in results for item in part]
