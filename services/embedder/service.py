"""Assembles the embedder: models, engine, servicer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import torch

from regionsearch.v1 import embed_pb2_grpc
from services.embedder.backends import load_backend
from services.embedder.backends.base import Backend
from services.embedder.engine import EmbedEngine
from services.embedder.loading import find_model
from services.embedder.servicer import EmbedServicer
from services.embedder.settings import EmbedderSettings
from services.runtime.server import Lifespan, Server
from services.torch_runtime.devices import choose_precision, find_devices, use_float32


def load(settings: EmbedderSettings) -> list[Backend]:
    """Loads the model that the settings name, on every device.

    Raises:
        RegionSearchError: See :func:`find_model`, :func:`find_devices` and :func:`load_backend`.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    use_float32(settings.precision)
    files = find_model(settings.model, settings.weights, settings.random_weights)
    return [
        load_backend(files, device, choose_precision(settings.precision, device), settings.compile)
        for device in find_devices(settings.device)
    ]


def embedder(settings: EmbedderSettings) -> Lifespan:
    """The lifespan of an embedder's process; see `services.runtime.server`."""

    @contextlib.asynccontextmanager
    async def lifespan(server: Server) -> AsyncIterator[None]:
        backends = await asyncio.to_thread(load, settings)
        engine = EmbedEngine(
            backends, settings.batching, text_cache=settings.text_cache, on_fatal=server.fail
        )
        await engine.warmup()
        server.add(embed_pb2_grpc.add_EmbedServiceServicer_to_server, EmbedServicer(engine, settings))
        yield
        await engine.close()

    return lifespan
