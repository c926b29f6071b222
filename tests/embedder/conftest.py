"""A small open_clip model with fixed random weights, on disk as the pocket model is, and its service."""

import hashlib
import json
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
import torch
from safetensors.torch import save_file

from regionsearch.v1 import embed_pb2, embed_pb2_grpc
from services.embedder.backends import load_backend
from services.embedder.backends.open_clip import build
from services.embedder.service import embedder, find_model
from services.embedder.settings import EmbedderSettings
from services.runtime.batch import BatchSettings
from services.runtime.server import serving

EMBED = embed_pb2.DESCRIPTOR.services_by_name["EmbedService"]
CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="session")
def manifest(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    weights = folder / "embedder.safetensors"
    save_file({name: value.half() for name, value in build(CONFIG).state_dict().items()}, weights)
    description = {
        "family": "open_clip",
        "variant": "tiny",
        "model_config": CONFIG,
        "preprocess": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "resize_mode": "squash"},
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    (folder / "embedder.json").write_text(json.dumps(description))
    return folder / "embedder.json"


@pytest.fixture(scope="session")
def backend(manifest):
    return load_backend(find_model(str(manifest)), torch.device("cpu"), "fp32", False)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(manifest):
    """A stub of a service, whose batches are small enough that requests are split; one for each module."""
    settings = EmbedderSettings(
        model=str(manifest), port=0, device="cpu", drain_delay_s=0, batching=BatchSettings(max_batch=8)
    )
    async with (
        serving(settings, [EMBED], embedder(settings)) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield embed_pb2_grpc.EmbedServiceStub(channel)
