"""Our embedder: EmbedImages over gRPC, its own batching, replicas by round robin on the client's side."""

from __future__ import annotations

import runpy
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.compare import driver
from benchmarks.compare.peers import pocket_clip
from loadtests.launch import Process, stop_all
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.rpc.calls import CallPolicy, call
from regionsearch.rpc.channels import open_channel
from regionsearch.v1 import embed_pb2, embed_pb2_grpc, types_pb2


class Peer(driver.Peer):
    """The process of production, run from this file so that it can be slowed."""

    version = version("regionsearch")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._servers = [
            Process("embedder", folder, f"embedder{number}", {"drain_delay_s": 0}, module=__name__)
            for number in range(pocket_clip.REPLICAS)
        ]
        for server in self._servers:
            server.spawn()
        for server in self._servers:
            server.wait_serving()
        channel = open_channel(",".join(server.address for server in self._servers))
        self._stub = embed_pb2_grpc.EmbedServiceStub(channel)
        self._policy = CallPolicy(timeout_s=driver.PATIENCE_S, overload_attempts=1)
        self.ask(driver.crops()[0])

    def ask(self, query: Any, below: int | None = None) -> int:
        request = embed_pb2.EmbedImagesRequest(images=[types_pb2.Image(encoded=query)])
        try:
            return len(call(self._stub.EmbedImages, request, self._policy).vectors.data)
        except RegionSearchError as error:
            if error.kind is Kind.OVERLOADED:
                raise driver.RefusedError(error) from error
            raise

    def stop(self) -> None:
        stop_all(self._servers)


def main() -> None:
    """The embedder, slowed if `pocket_clip.SLEEP_S` says so."""
    import torch

    from services.embedder.backends.open_clip import OpenClipBackend

    def slow(self: OpenClipBackend, crops: torch.Tensor) -> torch.Tensor:
        time.sleep(pocket_clip.SLEEP_S * len(crops))
        return torch.nn.functional.normalize(torch.ones(len(crops), 256), dim=-1)

    if pocket_clip.SLEEP_S:
        OpenClipBackend.embed_crops = slow  # type: ignore[method-assign]
    pocket_clip.announce()
    runpy.run_module("services.embedder", run_name="__main__")


if __name__ == "__main__":
    main()
