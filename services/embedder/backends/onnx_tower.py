"""An image tower on a CPU, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn


class OnnxTower(nn.Module):
    """Takes the place of a model's ``visual``.

    A batch is one call, without Python's lock: torch takes the lock again after each of the tower's hundred
    operations, and waits for it while other threads receive and decode images. A batch of one also takes a
    third of the time, as nothing is looked up for every operation.

    Args:
        graph: What :func:`training.graph.write_graph` writes; the weights are next to it.
    """

    def __init__(self, graph: Path) -> None:
        import onnxruntime  # here, so that towers on other devices do without it

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Idle threads of the tower would take the cores of those that receive and decode images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def forward(self, crops: Tensor) -> Tensor:
        """Vectors (N, dimension) float32 of crops (N, 3, size, size) float32."""
        (vectors,) = self._session.run(None, {"crops": crops.contiguous().numpy()})
        return torch.from_numpy(vectors)
