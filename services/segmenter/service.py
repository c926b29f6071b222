"""Assembles the segmenter: model, engine, servicer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import torch

from regionsearch.v1 import segment_pb2_grpc
from services.runtime.server import Lifespan, Server
from services.segmenter.backends import load_backend
from services.segmenter.backends.base import Backend
from services.segmenter.engine import SegmentEngine
from services.segmenter.everything import segment_everything
from services.segmenter.loading import find_model
from services.segmenter.options import Defaults, EverythingOptions
from services.segmenter.servicer import SegmentServicer
from services.segmenter.settings import SegmenterSettings
from services.torch_runtime.devices import find_device


def load(settings: SegmenterSettings) -> tuple[Backend, Defaults]:
    """Loads the model that the settings name and warms it up; returns it with its defaults.

    Raises:
        RegionSearchError: See :func:`find_model`, :func:`find_device` and :func:`load_backend`.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    files = find_model(settings.model)
    backend = load_backend(files, str(find_device(settings.device)), settings.precision)
    everything = replace(EverythingOptions(), **files.everything)
    segment_everything(backend, np.zeros((64, 64, 3), np.uint8), replace(everything, points_per_side=2))
    if backend.refiner is not None:
        backend.refiner.warmup()
    return backend, Defaults(everything, files.zoom if settings.zoom is None else settings.zoom)


def segmenter(settings: SegmenterSettings) -> Lifespan:
    """The lifespan of a segmenter's process; see `services.runtime.server`."""

    @contextlib.asynccontextmanager
    async def lifespan(server: Server) -> AsyncIterator[None]:
        backend, defaults = await asyncio.to_thread(load, settings)
        engine = SegmentEngine(
            backend,
            settings.batching,
            cache_bytes=settings.cache_bytes,
            max_candidate_bytes=settings.max_candidate_bytes,
            on_fatal=server.fail,
        )
        server.add(
            segment_pb2_grpc.add_SegmentServiceServicer_to_server,
            SegmentServicer(engine, defaults, settings, server.load),
        )
        yield
        await engine.close()

    return lifespan
