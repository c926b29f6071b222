"""LitServe: FastAPI, models in worker processes; crops in base 64."""

import base64
import sys
from typing import Any

from fastapi import Request

from benchmarks.compare.peers import pocket_clip
from benchmarks.compare.peers.served import Served, in_json

sys.modules["mcp"] = None  # type: ignore[assignment]  # the one that we see is too new for it
import litserve  # noqa: E402


class Peer(Served):
    """Its defaults: no limit of waiting calls, 30 s for each."""

    package = "litserve"
    path = "/predict"

    def body(self, crop: bytes) -> bytes:
        return in_json("crop", crop)


class Embed(litserve.LitAPI):  # type: ignore[misc]
    """One model a process."""

    def setup(self, device: Any) -> None:
        self._model = pocket_clip.Model()

    def decode_request(self, request: Request) -> bytes:
        about: Any = request  # what it makes of the JSON
        return base64.b64decode(about["crop"])

    def predict(self, x: Any) -> Any:
        return self._model(x)

    def encode_response(self, output: Any) -> Any:
        return {"vector": base64.b64encode(output.tobytes()).decode()}


if __name__ == "__main__":
    api = Embed(max_batch_size=pocket_clip.BATCH, batch_timeout=pocket_clip.WAIT_S)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=pocket_clip.REPLICAS)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
