"""Services whose models take a fixed time on a device of their own, as on machines with a GPU.

With them a benchmark measures what is around the models. Each runs as a process of its own, beside the real
gateway and searcher: ``python -m benchmarks.simulated_services segmenter``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from regionsearch.images import decode_image
from regionsearch.masks import mask_to_proto
from regionsearch.tensors import tensor_to_proto
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

    async def IndexSegment(self, request: Any, context: Any) -> segment_pb2.SegmentResponse:  # noqa: N802
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
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._running):
            process.terminate()
            process.wait(60)

    def stand_in(self, role: str, *, call_s: float = 0.0, item_s: float = 0.0) -> str:
        """Starts a stand-in for a service; returns its address."""
        command = ["benchmarks.simulated_services", role, "--call-s", str(call_s), "--item-s", str(item_s)]
        return self.start(role, command)

    def searcher(self) -> str:
        """Starts a real searcher with nothing in it; returns its address."""
        return self.start("searcher", ["services.searcher"], embedded__folder=str(self._folder / "records"))

    def gateway(self, **services: str) -> str:
        """Starts a real gateway on services' addresses, separated by commas; returns its URL."""
        port = self._folder / f"http-{len(self._running)}"
        settings = {"http_port": "0", "http_port_file": str(port)}
        self.start("gateway", ["gateway"], image_store=str(self._folder / "images"), **settings, **services)
        return f"http://127.0.0.1:{port.read_text().strip()}"

    def start(self, role: str, command: list[str], **settings: str) -> str:
        """Starts one and waits until it serves; returns its address."""
        name = f"{role}-{len(self._running)}"
        port_file, log_file = self._folder / f"{name}.port", self._folder / f"{name}.log"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        environment |= {
            f"REGIONSEARCH_{role.upper()}_{key.upper()}": value for key, value in settings.items()
        }
        arguments = [sys.executable, "-m", *command, "--port", "0", "--port-file", str(port_file)]
        with log_file.open("wb") as log:
            process = subprocess.Popen(arguments, env=environment, stdout=log, stderr=log)
        self._running.append(process)
        while not port_file.exists():
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended: {log_file.read_text()[-2000:]}")
            time.sleep(0.05)
        return f"127.0.0.1:{port_file.read_text().strip()}"


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
