"""The gateway: what the whole pipeline costs beside its slowest stage.

Every process runs by itself, as in production. Once the models are stand-ins that take a fixed time on a
device of their own, as on machines with a GPU, so that what is measured is the pipeline; once they are the
pocket models, which share this machine's processors with everything else.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import io
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
from PIL import Image, ImageDraw

from benchmarks.harness import Case, Pair
from regionsearch.images import decode_image
from regionsearch.masks import mask_to_proto
from regionsearch.tensors import tensor_to_proto
from regionsearch.v1 import embed_pb2, embed_pb2_grpc, segment_pb2, segment_pb2_grpc, types_pb2
from services.runtime.server import Server, run
from services.runtime.settings import ServiceSettings

CLIENTS = 8
IMAGES = 64
REAL_IMAGES = 16
REGIONS = 24
SEGMENT_S, EMBED_REGION_S = 0.050, 0.001  # on the stand-ins' devices
WIDTH, HEIGHT = 640, 480


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


class StageSettings(ServiceSettings):
    """Of a stand-in."""

    process = "stage"


class FixedSegmenter(segment_pb2_grpc.SegmentServiceServicer):
    """One device, SEGMENT_S a picture, REGIONS regions."""

    def __init__(self) -> None:
        self._device = asyncio.Lock()
        masks = np.zeros((REGIONS, HEIGHT, WIDTH), bool)
        for index, mask in enumerate(masks):
            mask[index * 10 : index * 10 + 60, 40:200] = True
        self._answer = segment_pb2.SegmentResponse(
            regions=[
                types_pb2.Region(
                    box=types_pb2.Box(x_min=40, y_min=index * 10, x_max=200, y_max=index * 10 + 60),
                    mask=mask_to_proto(mask),
                    area=9600,
                    predicted_iou=0.9,
                    stability_score=0.9,
                )
                for index, mask in enumerate(masks)
            ],
            image_height=HEIGHT,
            image_width=WIDTH,
        )

    async def Segment(self, request: Any, context: Any) -> segment_pb2.SegmentResponse:  # noqa: N802
        """Waits its turn."""
        await asyncio.to_thread(decode_image, request.image.encoded)
        async with self._device:
            await asyncio.sleep(SEGMENT_S)
        return self._answer


class FixedEmbedder(embed_pb2_grpc.EmbedServiceServicer):
    """One device, EMBED_REGION_S a region."""

    def __init__(self) -> None:
        self._device = asyncio.Lock()
        self._model = types_pb2.ModelInfo(
            family="open_clip", variant="fixed", weights_digest="f" * 64, dimension=256,
            crop_policy=types_pb2.CROP_POLICY_BLUR,
        )  # fmt: skip

    async def _vectors(self, count: int) -> types_pb2.Tensor:
        async with self._device:
            await asyncio.sleep(EMBED_REGION_S * count)
        return tensor_to_proto(np.ones((count, 256), np.float32) / 16)

    async def EmbedRegions(self, request: Any, context: Any) -> embed_pb2.EmbedRegionsResponse:  # noqa: N802
        """Waits its turn."""
        await asyncio.to_thread(decode_image, request.image.encoded)
        return embed_pb2.EmbedRegionsResponse(
            vectors=await self._vectors(len(request.regions)), model=self._model
        )

    async def EmbedImages(self, request: Any, context: Any) -> embed_pb2.EmbedImagesResponse:  # noqa: N802
        """Waits its turn."""
        return embed_pb2.EmbedImagesResponse(
            vectors=await self._vectors(len(request.images)), model=self._model
        )

    async def GetModel(self, request: Any, context: Any) -> embed_pb2.EmbedServiceGetModelResponse:  # noqa: N802
        """At once."""
        return embed_pb2.EmbedServiceGetModelResponse(model=self._model)


def serve_stage(name: str, arguments: list[str]) -> None:
    """The main function of a stand-in's process."""
    settings = StageSettings.load(arguments)
    if name == "segmenter":
        service = segment_pb2.DESCRIPTOR.services_by_name["SegmentService"]
        register: Any = segment_pb2_grpc.add_SegmentServiceServicer_to_server
        stand_in: Any = FixedSegmenter
    else:
        service = embed_pb2.DESCRIPTOR.services_by_name["EmbedService"]
        register = embed_pb2_grpc.add_EmbedServiceServicer_to_server
        stand_in = FixedEmbedder

    @contextlib.asynccontextmanager
    async def life(server: Server) -> AsyncIterator[None]:
        server.add(register, stand_in())
        yield

    run(settings, [service], life)


class Processes:
    """Processes of this project on free ports."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, command: list[str], **settings: str) -> str:
        """Starts one and waits until it serves; returns its address."""
        port_file = self._folder / f"{name}.port"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        environment |= {
            f"REGIONSEARCH_{name.upper()}_{key.upper()}": value for key, value in settings.items()
        }
        with (self._folder / f"{name}.log").open("wb") as log:
            arguments = [sys.executable, "-m", *command, "--port", "0", "--port-file", str(port_file)]
            process = subprocess.Popen(arguments, env=environment, stdout=log, stderr=log)
        self._running.append(process)
        while not port_file.exists():
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended: {(self._folder / f'{name}.log').read_text()[-2000:]}")
            time.sleep(0.05)
        return f"127.0.0.1:{port_file.read_text().strip()}"

    def stop(self) -> None:
        """Ends all of them, the last one first."""
        for process in reversed(self._running):
            process.terminate()
            process.wait(60)


@contextlib.contextmanager
def pipeline(fixed: bool) -> Iterator[tuple[str, str]]:
    """All four processes; yields the gateway's URL and the segmenter's address."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes = Processes(folder)
        stand_in = ["benchmarks.bench_gateway"]
        try:
            services = {
                "searcher": processes.start(
                    "searcher", ["services.searcher"], embedded__folder=str(folder / "records")
                ),
                "segmenter": processes.start(
                    "segmenter", [*stand_in, "segmenter"] if fixed else ["services.segmenter"]
                ),
                "embedder": processes.start(
                    "embedder", [*stand_in, "embedder"] if fixed else ["services.embedder"]
                ),
            }
            processes.start(
                "gateway",
                ["gateway"],
                http_port="0",
                http_port_file=str(folder / "http"),
                image_store=str(folder / "images"),
                **services,
            )
            yield f"http://127.0.0.1:{(folder / 'http').read_text().strip()}", services["segmenter"]
        finally:
            processes.stop()


def drive(call: Callable[[bytes], object], pictures: list[bytes]) -> float:
    """CLIENTS callers, one picture after the other each; returns pictures per second."""
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        begin = time.perf_counter()
        list(pool.map(call, pictures))
        return len(pictures) / (time.perf_counter() - begin)


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

            def send(data: bytes) -> None:
                answer = http.post(f"{url}/v1/collections/default/images", files=[("files", ("p.jpg", data))])
                assert answer.json()["results"][0]["outcome"] == "created", answer.text

            def segment(data: bytes) -> None:
                image = types_pb2.Image(encoded=data)
                stub.Segment(segment_pb2.SegmentRequest(image=image, everything=options), timeout=300)

            def fresh() -> list[bytes]:
                return [picture(next(numbers)) for _ in range(count)]

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


if __name__ == "__main__":
    serve_stage(sys.argv[1], sys.argv[2:])
