"""pytriton: Triton with the model as a Python function in its parent process; crops as bytes."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from benchmarks.compare import driver
from benchmarks.compare.peers import pocket_clip
from benchmarks.compare.peers.served import Served


class Peer(Served):
    """Its defaults; its own client, one a caller."""

    package = "nvidia-pytriton"

    def ask(self, query: Any, below: int | None = None) -> int:
        from pytriton.client import ModelClient

        if not hasattr(self._own, "client"):
            self._own.client = ModelClient(
                f"http://127.0.0.1:{self.port}", "clip", inference_timeout_s=driver.PATIENCE_S
            )
        answer = self._own.client.infer_sample(np.array([query], dtype=object))
        return int(answer["vector"].nbytes)


def main() -> None:
    """The server."""
    from pytriton.decorators import batch
    from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig

    @batch  # type: ignore[untyped-decorator]
    def embed(crop: Any) -> Any:
        return {"vector": model([bytes(one) for one in crop[:, 0]])}

    model = pocket_clip.Model()
    grpc_port, metrics_port = driver.free_ports(2)
    ports = TritonConfig(http_port=int(sys.argv[1]), grpc_port=grpc_port, metrics_port=metrics_port)
    with Triton(config=ports) as triton:
        waiting = DynamicBatcher(max_queue_delay_microseconds=round(1e6 * pocket_clip.WAIT_S))
        triton.bind(
            model_name="clip",
            infer_func=[embed] * pocket_clip.REPLICAS,
            inputs=[Tensor(name="crop", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="vector", dtype=np.float32, shape=(256,))],
            config=ModelConfig(max_batch_size=pocket_clip.BATCH, batcher=waiting),
        )
        triton.serve()


if __name__ == "__main__":
    main()
