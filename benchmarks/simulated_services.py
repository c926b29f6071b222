"""Services whose models take a fixed time on a device of their own, as on machines with a GPU.

With them a benchmark measures everything but the models. Each runs in its own process, next to the real
gateway and searcher: ``python -m benchmarks.simulated_services segmenter``.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from pydantic import Field

from loadtests.launch import Process, stop_all
from regionsearch.images import decode_image
from regionsearch.tensors import mask_to_proto, tensor_to_proto
from regionsearch.v1 import embed_pb2, embed_pb2_grpc, segment_pb2, segment_pb2_grpc, types_pb2
from services.runtime.server import Server, run
from services.runtime.settings import ServiceSettings

REGIONS = 24
WIDTH, HEIGHT = 640, 480
DIMENSION = 256


class StageSettings(ServiceSettings):
    """Of a stand-in: how long its device takes."""

    process = "stage"

    call_s: float = Field(0.0, ge=0, description="For each call.")
    item_s: float = Field(0.0, ge=0, description="For each region or image of a call, on top.")


class Device:
    """Does one thing after the other; sleeps instead of computing, so that several fit one machine."""

    def __init__(self, settings: StageSettings) -> None:
        self._settings = settings
        self._busy = asyncio.Lock()

    async def run(self, items: int) -> None:
        """Waits its turn, and then as long as the device takes."""
        async with self._busy:
            await asyncio.sleep(self._settings.call_s + self._settings.item_s * items)


class FixedSegmenter(segment_pb2_grpc.SegmentServiceServicer):
    """Finds the same REGIONS regions in every image."""

    def __init__(self, settings: StageSettings) -> None:
        self._device = Device(settings)
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
        await self._device.run(1)
        return self._answer


class FixedEmbedder(embed_pb2_grpc.EmbedServiceServicer):
    """Gives every region and every image the same vector."""

    def __init__(self, settings: StageSettings) -> None:
        self._device = Device(settings)
        self._model = types_pb2.ModelInfo(
            family="open_clip", variant="fixed", weights_digest="f" * 64, dimension=DIMENSION,
            crop_policy=types_pb2.CROP_POLICY_BLUR,
        )  # fmt: skip

    async def _vectors(self, count: int) -> np.ndarray:
        await self._device.run(count)
        return np.full((count, DIMENSION), DIMENSION**-0.5, np.float32)

    async def EmbedRegions(self, request: Any, context: Any) -> embed_pb2.EmbedRegionsResponse:  # noqa: N802
        """Waits its turn."""
        await asyncio.to_thread(decode_image, request.image.encoded)
        vectors = await self._vectors(request.include_image + len(request.regions))
        return embed_pb2.EmbedRegionsResponse(
            vectors=tensor_to_proto(vectors[request.include_image :]),
            model=self._model,
            image_vector=tensor_to_proto(vectors[:1]) if request.include_image else None,
        )

    async def EmbedImages(self, request: Any, context: Any) -> embed_pb2.EmbedImagesResponse:  # noqa: N802
        """Waits its turn."""
        vectors = await self._vectors(len(request.images))
        return embed_pb2.EmbedImagesResponse(vectors=tensor_to_proto(vectors), model=self._model)

    async def GetModel(self, request: Any, context: Any) -> embed_pb2.EmbedServiceGetModelResponse:  # noqa: N802
        """At once."""
        return embed_pb2.EmbedServiceGetModelResponse(model=self._model)


_STAND_INS: dict[str, tuple[Any, Any, type]] = {
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
    async def life(server: Server) -> AsyncIterator[None]:
        server.add(register, stand_in(settings))
        yield

    run(settings, [service], life)


class Processes:
    """Processes of this project on free ports. A context manager: at its end they are stopped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[Process] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        stop_all(self._running)

    def stand_in(self, role: str, *, call_s: float = 0.0, item_s: float = 0.0) -> str:
        """Starts a stand-in for a service; returns its address."""
        settings = {"call_s": call_s, "item_s": item_s}
        return self.start("stage", settings, "benchmarks.simulated_services", (role,))

    def searcher(self) -> str:
        """Starts a real searcher with nothing in it; returns its address."""
        return self.start("searcher", {"embedded__folder": self._folder / "records"})

    def gateway(self, **services: str) -> str:
        """Starts a real gateway on services' addresses, separated by commas; returns its URL."""
        port = self._folder / f"http-{len(self._running)}"
        settings = {"http_port": 0, "http_port_file": port, "image_store": self._folder / "images"}
        self.start("gateway", settings | services)
        return f"http://127.0.0.1:{port.read_text().strip()}"

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
