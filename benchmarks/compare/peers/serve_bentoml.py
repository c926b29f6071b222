"""BentoML: worker processes with adaptive batching; crops in base 64."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

from benchmarks.compare.peers import pocket_clip
from benchmarks.compare.peers.served import Served, in_json


class Peer(Served):
    """Its defaults, with batches of 64 and a latency of two seconds at most before it drops calls."""

    package = "bentoml"
    path = "/embed"

    def command(self) -> list[str]:
        program = Path(sys.executable).with_name("bentoml")
        service = f"{__name__.removesuffix('.serve_bentoml')}.bento:Embed"
        return [str(program), "serve", service, "--host", "127.0.0.1", "--port", str(self.port)]

    def body(self, crop: bytes) -> bytes:
        return in_json("crops", crop, several=True)


def embed(model: pocket_clip.Model, crops: list[str]) -> list[str]:
    """Vectors in base 64."""
    vectors = model([base64.b64decode(crop) for crop in crops])
    return [base64.b64encode(vector.tobytes()).decode() for vector in vectors]
