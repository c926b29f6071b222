from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image

from services.segmenter.backends import load_backend
from services.segmenter.backends.base import ModelIdentity
from services.segmenter.backends.pocket import build_pocket_sam
from services.segmenter.backends.sam import SamBackend
from services.segmenter.loading import find_model
from services.segmenter.settings import SegmenterSettings


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pocket() -> SamBackend:
    """The bundled model."""
    backend = load_backend(find_model(SegmenterSettings().model), "cpu", "fp32")
    assert isinstance(backend, SamBackend)
    return backend


@pytest.fixture(scope="session")
def untrained() -> SamBackend:
    """A model of the same kind with random weights, for what does not depend on the answer."""
    torch.manual_seed(0)
    sam = build_pocket_sam(img_size=128, width=64)
    torch.nn.init.constant_(sam.mask_decoder.iou_prediction_head.layers[-1].bias, 0.9)
    return SamBackend(sam, ModelIdentity("sam", "untrained", "0" * 64, "fp32", "cpu"))


def resized(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    return np.array(Image.fromarray(image).resize((width, height)))


@pytest.fixture(scope="session")
def astronaut() -> NDArray[np.uint8]:
    return resized(skimage.data.astronaut(), 256, 256)


@pytest.fixture(scope="session")
def scene() -> NDArray[np.uint8]:
    """One of the images that the bundled model was made for."""
    file = Path(__file__).parents[2] / "examples" / "scenes" / "scene-01.jpg"
    return resized(np.array(Image.open(file).convert("RGB")), 270, 360)


@pytest.fixture(scope="session")
def coffee() -> NDArray[np.uint8]:
    return resized(skimage.data.coffee(), 200, 300)


async def port_of(process: asyncio.subprocess.Process) -> int:
    """The port that a service's process says when it serves."""
    assert process.stdout is not None
    while line := await asyncio.wait_for(process.stdout.readline(), 400):
        event = json.loads(line)
        if event.get("event") == "serving":
            return int(event["port"])
    raise AssertionError("the process ended before it served")
