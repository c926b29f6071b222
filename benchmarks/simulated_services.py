"""Services whose models take a fixed time on a device of their own, as on machines with a GPU.

With them a benchmark measures everything but the models. Each runs in its own process, next to the real
gateway and searcher: ``python -m benchmarks.simulated_services segmenter``.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import psutil
from pydantic import Field

from loadtests.launch import Process, free_ports, stop_all
from regionsearch.images import decode_image
from regionsearch.tensors import mask_to_proto, tensor_to_proto
from regionsearch.v1 import embed_pb2, embed_pb2_grpc, segment_pb2, segment_pb2_grpc, types_pb2
from services.runtime.batcher import Batcher, BatchSettings, BatchSlice
from services.runtime.server import Server, run, serving
from services.runtime.settings import ServiceSettings

REGIONS = 24
WIDTH, HEIGHT = 640, 480
DIMENSION = 256


class StageSettings(ServiceSettings):
    """Of a stand-in: how long its device takes."""

    process = "stage"

    batch_s: float = Field(0.0, ge=0, description="For each batch.")
    item_s: float = Field(0.0, ge=0, description="For each region, image or text in it, on top.")
    batching: BatchSettings = BatchSettings()
    more_ports: tuple[int, ...] = Field((), description="Of further replicas, each with its own device.")


class Device:
    """A device behind the real batcher. It sleeps instead of computing, so that several fit one machine."""

    def __init__(self, settings: StageSettings) -> None:
        self._settings = settings
        self._batcher: Batcher[bytes, None] = Batcher(
            "stage", settings.batching, prepare=_decode, device=[self._batch]
        )
        self.close = self._batcher.close

    async def run(self, items: int, image: bytes = b"") -> None:
        """Waits as long as decoding, the queue and the device take."""
        await self._batcher.submit(image, items)

    def _batch(self, parts: Sequence[BatchSlice[None]]) -> list[None]:
        settings = self._settings
        time.sleep(settings.batch_s + settings.item_s * sum(part.size for part in parts))
        return [None] * len(parts)


def _decode(image: bytes) -> None:
    if image:
        decode_image(image)


class FixedSegmenter(segment_pb2_grpc.SegmentServiceServicer):
    """Finds the same REGIONS regions in every image."""

    def __init__(self, settings: StageSettings) -> None:
        self.device = Device(settings)
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
        await self.device.run(1, request.image.encoded)
        return self._answer


class FixedEmbedder(embed_pb2_grpc.EmbedServiceServicer):
    """Gives every region and every image the same vector."""

    def __init__(self, settings: StageSettings) -> None:
        self.device = Device(settings)
        self._model = types_pb2.ModelInfo(
            family="open_clip", variant="fixed", weights_digest="f" * 64, dimension=DIMENSION,
            crop_policy=types_pb2.CROP_POLICY_BLUR,
        )  # fmt: skip

    async def _vectors(self, count: int, image: bytes = b"") -> np.ndarray:
        await self.device.run(count, image)
        return np.full((count, DIMENSION), DIMENSION**-0.5, np.float32)

    async def EmbedRegions(self, request: Any, context: Any) -> embed_pb2.EmbedRegionsResponse:  # noqa: N802
        """Waits its turn."""
        vectors = await self._vectors(request.include_image + len(request.regions), request.image.encoded)
        return embed_pb2.EmbedRegionsResponse(
            vectors=tensor_to_proto(vectors[request.include_image :]),
            model=self._model,
            image_vector=tensor_to_proto(vectors[:1]) if request.include_image else None,
        )

    async def EmbedImages(self, request: Any, context: Any) -> embed_pb2.EmbedImagesResponse:  # noqa: N802
        """Waits its turn."""
        vectors = await self._vectors(len(request.images))
        return embed_pb2.EmbedImagesResponse(vectors=tensor_to_proto(vectors), model=self._model)

    async def EmbedTexts(self, request: Any, context: Any) -> embed_pb2.EmbedTextsResponse:  # noqa: N802
        """Waits its turn."""
        vectors = await self._vectors(len(request.texts))
        truncated = [False] * len(request.texts)
        return embed_pb2.EmbedTextsResponse(
            vectors=tensor_to_proto(vectors), model=self._model, truncated=truncated
        )

    async def GetModel(self, request: Any, context: Any) -> embed_pb2.EmbedServiceGetModelResponse:  # noqa: N802
        """At once."""
        return embed_pb2.EmbedServiceGetModelResponse(model=self._model)


_STAND_INS: dict[str, tuple[Any, Any, type[FixedSegmenter] | type[FixedEmbedder]]] = {
    "segmenter": (
        segment_pb2.DESCRIPTOR.services_by_name["SegmentService"],
        segment_pb2_grpc.add_SegmentServiceServicer_to_server,
        FixedSegmenter,
    ),
    "embedder": (
        embed_pb2.DESCRIPTOR.services_by_name["EmbedService"],
        embed_pb2_grpc.add_EmbedServiceServicer_to_server,
        FixedEmbedder,
    ),
}


def serve(name: str, arguments: list[str]) -> None:
    """The main function of a stand-in's process."""
    settings = StageSettings.load(arguments)
    service, register, stand_in = _STAND_INS[name]

    @contextlib.asynccontextmanager
    async def replica(server: Server) -> AsyncIterator[None]:
        servicer = stand_in(settings)
        server.add(register, servicer)
        yield
        await servicer.device.close()

    @contextlib.asynccontextmanager
    async def all_replicas(server: Server) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as others, replica(server):
            for port in settings.more_ports:
                of_its_own = settings.model_copy(update={"port": port, "port_file": None})
                await others.enter_async_context(serving(of_its_own, [service], replica))
            yield

    run(settings, [service], all_replicas)


class Processes:
    """Processes of this project on free ports. A context manager: at its end they are stopped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[Process] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        stop_all(self._running)

    def stand_in(self, role: str, replicas: int = 1, **settings: object) -> str:
        """Starts a stand-in for a service, all replicas in one process; returns their addresses."""
        port, *more = ports = free_ports(replicas)
        settings |= {"port": port, "more_ports": more}
        self.start("stage", settings, "benchmarks.simulated_services", (role,))
        return ",".join(f"127.0.0.1:{port}" for port in ports)

    def searcher(self) -> str:
        """Starts a real searcher with nothing in it; returns its address."""
        return self.start("searcher", {"embedded__folder": self._folder / "records"})

    def gateway(self, **settings: object) -> str:
        """Starts a real gateway on services' addresses, separated by commas; returns its URL."""
        port = self._folder / f"http-{len(self._running)}"
        own = {"http_port": 0, "http_port_file": port, "image_store": self._folder / "images"}
        self.start("gateway", own | settings)
        return f"http://127.0.0.1:{port.read_text().strip()}"

    def cpu_s(self, role: str | None = None) -> float:
        """CPU time that all processes, or those of a role, have taken until now, seconds."""
        running = [one.process for one in self._running if role in (None, one.role)]
        times = [psutil.Process(process.pid).cpu_times() for process in running if process is not None]
        return float(sum(one.user + one.system for one in times))

    def start(
        self,
        role: str,
        settings: Mapping[str, object] = MappingProxyType({}),
        module: str | None = None,
        arguments: Sequence[str] = (),
    ) -> str:
        """Starts one with one thread for its models and waits until it serves; returns its address."""
        name = f"{role}-{len(self._running)}"
        process = Process(role, self._folder, name, settings, module, arguments, {"OMP_NUM_THREADS": "1"})
        self._running.append(process)
        return process.start()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
