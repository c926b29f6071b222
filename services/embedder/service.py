"""Assembles the embedder: from the name of a model to its files, then models, engine, servicer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import torch

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.models.store import pocket_dir
from regionsearch.v1 import embed_pb2_grpc
from services.embedder.backends import load_backend
from services.embedder.backends.base import Backend, ModelFiles
from services.embedder.backends.open_clip import find_open_clip
from services.embedder.engine import EmbedEngine
from services.embedder.options import CropPolicy
from services.embedder.servicer import EmbedServicer
from services.embedder.settings import EmbedderSettings
from services.runtime.server import Lifespan, Server
from services.torch_runtime.devices import allow_tf32, choose_precision, find_devices
from services.torch_runtime.heap import reuse_freed_memory
from services.torch_runtime.model_files import read_manifest, verified_digest


def load(settings: EmbedderSettings) -> list[Backend]:
    """Loads the model that the settings name, on every device.

    Raises:
        RegionSearchError: See :func:`find_model`, :func:`find_devices` and :func:`load_backend`.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    allow_tf32(False)
    files = find_model(settings.model, settings.weights, settings.random_weights)
    return [
        load_backend(files, device, choose_precision(settings.precision, device), settings.compile)
        for device in find_devices(settings.device)
    ]


def embedder(settings: EmbedderSettings) -> Lifespan:
    """The lifespan of an embedder's process; see `services.runtime.server`."""

    @contextlib.asynccontextmanager
    async def lifespan(server: Server) -> AsyncIterator[None]:
        reuse_freed_memory()
        backends = await asyncio.to_thread(load, settings)
        engine = EmbedEngine(
            backends, settings.batching, text_cache=settings.text_cache, on_fatal=server.fail
        )
        await engine.warmup()
        server.add(embed_pb2_grpc.add_EmbedServiceServicer_to_server, EmbedServicer(engine, settings))
        yield
        await engine.close()

    return lifespan


def find_model(model: str, weights: Path | None = None, random_weights: bool = False) -> ModelFiles:
    """The files of a model.

    Args:
        model: ``pocket``, the path of an ``embedder.json``, or what
            :func:`services.embedder.backends.open_clip.find_open_clip` takes.
        weights: Weights file of an open_clip model that was not pulled with `regionsearch models pull`.
        random_weights: Do not load weights.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for an unknown name, NOT_FOUND for no file, DATA_LOSS when a file
            is not what its manifest says or what was downloaded.
    """
    if model == "pocket":
        return _from_manifest(pocket_dir() / "embedder.json", random_weights)
    if model.endswith(".json"):
        return _from_manifest(Path(model), random_weights)
    if (Path(model) / "embedder.json").is_file():
        return _from_manifest(Path(model) / "embedder.json", random_weights)
    return find_open_clip(model, weights, random_weights)


def _from_manifest(path: Path, random_weights: bool) -> ModelFiles:
    manifest = read_manifest(path, "embedder", ("family", "variant", "model_config", "preprocess", "sha256"))
    described = manifest["family"], manifest["variant"], manifest["model_config"], manifest["preprocess"]
    if random_weights:
        return ModelFiles(*described, None)
    weights = path.with_suffix(".safetensors")
    digest = verified_digest(weights, path, manifest["sha256"])
    graph = path.with_suffix(".onnx")
    has_graph = "graph_sha256" in manifest and graph.is_file()
    if has_graph:
        verified_digest(graph, path, manifest["graph_sha256"])
    return ModelFiles(
        *described,
        weights,
        manifest.get("same_as", digest),
        cut_offs=read_cut_offs(path, manifest),
        graph=graph if has_graph else None,
    )


def read_cut_offs(path: Path, manifest: Mapping[str, Any]) -> dict[str, float]:
    """The cut-offs of a manifest by crop policy; none where the model was not calibrated.

    Raises:
        RegionSearchError: DATA_LOSS when they are not cosines of known crop policies.
    """
    try:
        found = {CropPolicy(name).value: float(score) for name, score in manifest.get("cut_offs", {}).items()}
        wrong = [f"{name}: {score}" for name, score in found.items() if not -1.0 <= score <= 1.0]
    except (AttributeError, TypeError, ValueError) as error:
        wrong = [str(error)]
    if wrong:
        raise RegionSearchError(
            Kind.DATA_LOSS,
            f"{path}: cut_offs are not valid ({wrong[0]}); measure them: regionsearch evaluate --calibrate",
            field="model",
        )
    return found
