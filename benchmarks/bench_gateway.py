"""The gateway: what the whole pipeline costs beside its slowest stage.

Every process runs by itself, as in production. Once the models are stand-ins that take a fixed time on a
device of their own, as on machines with a GPU, so that what is measured is the pipeline; once they are the
pocket models, which share this machine's processors with everything else.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import httpx
import numpy as np
from PIL import Image, ImageDraw

from benchmarks.harness import Case, Pair
from benchmarks.stand_ins import HEIGHT, WIDTH, Processes
from regionsearch.v1 import segment_pb2, segment_pb2_grpc, types_pb2

CLIENTS = 8
IMAGES = 64
REAL_IMAGES = 16
SEGMENT_S, EMBED_REGION_S = 0.050, 0.001  # on the stand-ins' devices


def picture(number: int) -> bytes:
    """A JPEG of some shapes, different for every number."""
    random = np.random.default_rng(number)
    image = Image.new("RGB", (WIDTH, HEIGHT), tuple(int(c) for c in random.integers(120, 255, 3)))
    pen = ImageDraw.Draw(image)
    for _ in range(10):
        left, top = int(random.integers(0, WIDTH - 90)), int(random.integers(0, HEIGHT - 90))
        side = int(random.integers(30, 90))
        pen.ellipse(
            (left, top, left + side, top + side), fill=tuple(int(c) for c in random.integers(0, 255, 3))
        )
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


@contextlib.contextmanager
def pipeline(fixed: bool) -> Iterator[tuple[str, str]]:
    """All four processes; yields the gateway's URL and the segmenter's address."""
    with tempfile.TemporaryDirectory() as name, Processes(Path(name)) as processes:
        if fixed:
            segmenter = processes.stand_in("segmenter", item_s=SEGMENT_S)
            embedder = processes.stand_in("embedder", item_s=EMBED_REGION_S)
        else:
            segmenter = processes.start("segmenter", ["services.segmenter"])
            embedder = processes.start("embedder", ["services.embedder"])
        url = processes.gateway(segmenter=segmenter, embedder=embedder, searcher=processes.searcher())
        yield url, segmenter


def drive(call: Callable[[bytes], object], pictures: list[bytes]) -> float:
    """CLIENTS callers, one picture after the other each; returns pictures per second."""
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        begin = time.perf_counter()
        list(pool.map(call, pictures))
        return len(pictures) / (time.perf_counter() - begin)


def sender(http: httpx.Client, url: str) -> Callable[[bytes], None]:
    """Takes in a picture that must be new."""

    def send(data: bytes) -> None:
        answer = http.post(f"{url}/v1/collections/default/images", files=[("files", ("p.jpg", data))])
        assert answer.json()["results"][0]["outcome"] == "created", answer.text

    return send


def ingest(fixed: bool, count: int) -> Callable[[], contextlib.AbstractContextManager[Pair]]:
    """Preparation: pictures a second through the gateway, against the segmenter alone, same callers."""

    @contextlib.contextmanager
    def prepared() -> Iterator[Pair]:
        numbers = itertools.count()
        with (
            pipeline(fixed) as (url, segmenter),
            httpx.Client(timeout=300) as http,
            grpc.insecure_channel(segmenter) as channel,
        ):
            stub = segment_pb2_grpc.SegmentServiceStub(channel)
            options = segment_pb2.EverythingOptions(selection=segment_pb2.SelectionOptions())

            def segment(data: bytes) -> None:
                image = types_pb2.Image(encoded=data)
                stub.Segment(segment_pb2.SegmentRequest(image=image, everything=options), timeout=300)

            def fresh() -> list[bytes]:
                return [picture(next(numbers)) for _ in range(count)]

            send = sender(http, url)
            yield Pair(lambda: drive(send, fresh()), lambda: drive(segment, fresh()))

    return prepared


def cases() -> list[Case]:
    """All comparisons of the gateway."""
    return [
        Case(
            "gateway: ingest by 8 clients, devices of fixed speed",
            "images/s",
            ingest(True, IMAGES),
            better="higher",
            target=0.85,
        ),
        Case(
            "gateway: ingest by 8 clients, pocket models on shared processors",
            "images/s",
            ingest(False, REAL_IMAGES),
            better="higher",
            target=0.85,
            runs=3,
            slow=True,
        ),
    ]
