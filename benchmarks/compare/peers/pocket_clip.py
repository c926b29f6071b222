"""The bundled CLIP as the servers hold it: crops as JPEG in, unit vectors out, a batch at a time."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

REPLICAS = int(os.environ.get("COMPARE_REPLICAS", "1"))
SLEEP_S = float(os.environ.get("COMPARE_SLEEP_S", "0"))
PIDS = os.environ.get("COMPARE_PIDS", "")
BATCH, WAIT_S = 64, 0.002


def announce() -> None:
    """Leaves the number of the process that holds a model, for the case that kills one."""
    if PIDS:
        (Path(PIDS) / str(os.getpid())).touch()


class Model:
    """Loads the weights; with `SLEEP_S` it waits so long for each crop instead of computing."""

    def __init__(self) -> None:
        import torch  # here, so that clients do without

        from regionsearch.models.store import pocket_dir
        from services.embedder.backends import open_clip

        about = json.loads((pocket_dir() / "embedder.json").read_text())
        self._torch, self._model = torch, open_clip.build(about["model_config"])
        open_clip.load_weights(self._model, pocket_dir() / "embedder.safetensors")
        self._model.eval()
        self._size = about["model_config"]["vision_cfg"]["image_size"]
        values = (torch.tensor(about["preprocess"][name]).view(3, 1, 1) for name in ("mean", "std"))
        self._mean, self._std = values
        announce()

    def __call__(self, crops: Sequence[bytes]) -> NDArray[np.float32]:
        """Shape (crops, dimension)."""
        if SLEEP_S:
            time.sleep(SLEEP_S * len(crops))
            return np.zeros((len(crops), 256), np.float32)
        size = (self._size, self._size)
        images = [Image.open(io.BytesIO(crop)).convert("RGB") for crop in crops]
        images = [image.resize(size, Image.Resampling.BICUBIC) for image in images]
        with self._torch.inference_mode():
            pixels = self._torch.from_numpy(np.stack([np.asarray(image) for image in images]))
            batch = (pixels.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std
            vectors: NDArray[np.float32] = self._model.encode_image(batch, normalize=True).numpy()
        return vectors
