"""Whatever callers, clocks and devices do, in any order: nothing is lost, mixed up or left behind."""

import asyncio
import contextlib
import threading

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.rpc.calls import calling_for
from services.runtime.batch import BatchSettings, Priority
from services.runtime.batcher import Batcher
from services.runtime.stages import Failure

MAX_BATCH, MAX_QUEUE = 4, 12
CALLERS = ["", "one", "other"]


class StepDevice:
    """Runs one batch whenever it is told to, well or badly."""

    def __init__(self) -> None:
        self.steps = threading.Semaphore(0)
        self.errors: list[Exception] = []
        self.sizes: list[int] = []
        self.open = False  # run freely
        self.served: list[tuple[int, int]] = []

    def __call__(self, parts):
        if not self.open:
            self.steps.acquire()
        size = sum(part.size for part in parts)
        self.sizes.append(size)
        if self.errors:
            raise self.errors.pop()
        if any(part.prepared[1] for part in parts):
            raise ValueError("poison")
        self.served += [(part.prepared[0], item) for part in parts for item in range(part.start, part.stop)]
        return [[(part.prepared[0], item) for item in range(part.start, part.stop)] for part in parts]


def classify(error: Exception) -> Failure:
    return Failure.OUT_OF_MEMORY if isinstance(error, MemoryError) else Failure.POISON


class BatcherStates(RuleBasedStateMachine):
    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.device = StepDevice()
        self.number = 0
        self.tasks: dict[int, tuple[asyncio.Task, int, bool]] = {}
        self.payloads: dict[int, tuple[int, bool]] = {}
        self.cancelled: set[int] = set()
        self.closing: asyncio.Task | None = None
        self.run(self._start())

    async def _start(self) -> None:
        self.batcher = Batcher(
            "states",
            BatchSettings(
                max_batch=MAX_BATCH, max_queue=MAX_QUEUE, max_bytes=100, max_delay_s=0, prepare_threads=2
            ),
            prepare=lambda payload: payload,
            device=[self.device],
            finish=list,
            classify=classify,
        )

    def run(self, work):
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    def settle(self) -> None:
        async def turns():
            for _ in range(3):
                await asyncio.sleep(0.0005)

        self.run(turns())

    @rule(
        target=calls,
        items=st.integers(1, 9),
        nbytes=st.sampled_from([0, 40, 300]),
        priority=st.sampled_from(Priority),
        key=st.sampled_from("ab"),
        poison=st.booleans(),
        patience=st.one_of(st.none(), st.sampled_from([0.0, 0.002, 60.0])),
        caller=st.sampled_from(CALLERS),
        more=st.sampled_from([0, 2]),
    )
    def submit(self, items, nbytes, priority, key, poison, patience, caller, more):
        self.number += 1
        number = self.number
        deadline = None if patience is None else self.loop.time() + patience
        payload = self.payloads[number] = (number, poison)
        work = self.batcher.submit(
            payload, items, nbytes=nbytes, priority=priority, key=key, deadline=deadline, more=more
        )

        async def begin():
            with calling_for(caller):
                task = asyncio.ensure_future(work)
            await asyncio.sleep(0)
            return task

        self.tasks[number] = (self.run(begin()), items, poison)
        return number

    @rule(number=consumes(calls))
    def cancel(self, number):
        task = self.tasks[number][0]
        if task.cancel():
            self.cancelled.add(number)
            self.settle()
            assert task.done()

    @rule(number=calls, priority=st.sampled_from(Priority))
    def escalate(self, number, priority):
        self.batcher.escalate(self.payloads[number], priority)

    @rule(error=st.one_of(st.none(), st.just(ValueError("once")), st.just(MemoryError())))
    def step(self, error):
        if error is not None:
            self.device.errors.append(error)
        self.device.steps.release()
        self.settle()

    @rule()
    def wait(self):
        self.settle()

    @precondition(lambda self: self.closing is None and self.number > 3)
    @rule()
    def close(self):
        async def begin():
            task = asyncio.ensure_future(self.batcher.close())
            await asyncio.sleep(0)
            return task

        self.closing = self.run(begin())

    @invariant()
    def caps_hold(self):
        assert all(0 <= memory.held <= 300 for memory in self.batcher._memory.values())
        assert all(size <= MAX_BATCH for size in self.device.sizes)
        for priority in Priority:
            queue = self.batcher._queues[priority]
            requests = list(queue)
            assert queue.waiting == sum(request.items - request.cut for request in requests)
            assert queue.waiting <= MAX_QUEUE or len(requests) == 1
            assert all(queue.waiting_of(caller) <= queue.waiting for caller in CALLERS)

    def teardown(self):
        self.device.open = True
        self.device.steps.release()
        self.run(self._finish())
        for thread in [t for t in threading.enumerate() if t.name.startswith("states")]:
            thread.join(60)
            assert not thread.is_alive()
        self.loop.close()

    async def _finish(self):
        await (self.closing or self.batcher.close())
        answered = set()
        for number, (task, items, poison) in self.tasks.items():
            assert task.done()
            with contextlib.suppress(asyncio.CancelledError):
                error = task.exception()
                if error is None:
                    assert not poison
                    flat = [item for part in task.result() for item in part]
                    assert flat == [(number, item) for item in range(items)]
                    answered.add(number)
                elif isinstance(error, RegionSearchError):
                    kinds = (Kind.OVERLOADED, Kind.DEADLINE_EXCEEDED, Kind.UNAVAILABLE)
                    assert error.kind in kinds or isinstance(error.__cause__, MemoryError)
                else:
                    assert poison or str(error) == "once"
        assert answered <= {number for number, _ in self.device.served}
        assert self.batcher.waiting == 0
        assert not self.batcher._live
        assert self.batcher._running == 0
        assert not any(self.batcher._slots.in_progress.values())
        assert not any(
            queue._accounts or queue._order for queue in map(self.batcher._queues.__getitem__, Priority)
        )
        assert all(memory.held == 0 for memory in self.batcher._memory.values())


BatcherStates.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestBatcherStates = BatcherStates.TestCase
