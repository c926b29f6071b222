"""Assembles the segmenter: model, engine, servicer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from regionsearch.errors import invalid
from regionsearch.v1 import segment_pb2_grpc
from services.runtime.batcher import BatchSettings
from services.runtime.server import Lifespan, Server
from services.segmenter.backends import load_backend
from services.segmenter.backends.base import Backend
from services.segmenter.backends.detector import Detector
from services.segmenter.backends.fastsam import BoxProposer
from services.segmenter.engine import SegmentEngine
from services.segmenter.everything import check_mode, segment_everything
from services.segmenter.loading import find_model
from services.segmenter.options import Defaults, EverythingOptions, Mode
from services.segmenter.servicer import SegmentServicer
from services.segmenter.settings import SegmenterSettings
from services.torch_runtime.devices import allow_tf32, choose_precision, find_device
from services.torch_runtime.heap import reuse_freed_memory
from services.torch_runtime.model_files import existing_file

CPU_POINTS_PER_SIDE = 16  # unless the model says otherwise: the reference's 32 take minutes


def load(settings: SegmenterSettings) -> tuple[Backend, Defaults]:
    """Loads the model that the settings name and warms it up; returns it with its defaults.

    Raises:
        RegionSearchError: See :func:`find_model`, :func:`find_device` and :func:`load_backend`.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    files = find_model(settings.model)
    device = find_device(settings.device)
    precision: str = settings.precision
    if files.family != "fastsam":  # FastSAM's file determines the precision
        precision = choose_precision(precision, device, files.match_rates)
        allow_tf32(False)
    backend = load_backend(files, str(device), precision, settings.compile)
    mode = Mode(files.mode)
    if settings.proposer:
        backend.proposer, mode = load_proposer(settings.proposer, backend), Mode.PROPOSALS
    everything = replace(EverythingOptions(), **files.everything)
    if backend.device.type == "cpu" and "points_per_side" not in files.everything:
        everything = replace(everything, points_per_side=CPU_POINTS_PER_SIDE)
    warmup(backend, everything)
    zoom = files.zoom if settings.zoom is None else settings.zoom
    defaults = settings.everything.applied_to(Defaults(everything, mode, zoom))
    check_mode(backend, defaults.mode)
    return backend, defaults


def warmup(backend: Backend, everything: EverythingOptions) -> None:
    """Runs the model in every way that is slow at first, so that no caller waits for its initialization."""
    nothing = np.zeros((64, 64, 3), np.uint8)
    if backend.choices is None:
        segment_everything(backend, nothing, replace(everything, points_per_side=2))
    if backend.proposer is not None:
        segment_everything(backend, nothing, everything, Mode.PROPOSALS)
    if backend.refiner is not None:
        backend.refiner.warmup()
    if backend.encode_batch > 1:
        for count in (2, backend.encode_batch):
            backend.encode([backend.prepare(nothing)] * count)
    if backend.phrase_finder is not None:
        (embedding,) = backend.encode([backend.prepare(nothing)])
        backend.phrase_finder.find(embedding, "object", 0.5)


def load_proposer(path: str, backend: Backend) -> BoxProposer:
    """Loads the detector whose boxes everything mode asks a model about.

    Raises:
        RegionSearchError: INVALID_ARGUMENT when the model does not take boxes, NOT_FOUND when the file does
            not exist; for others see :class:`Detector`.
    """
    if backend.choices is not None:
        raise invalid("proposer", f"{backend.identity.variant} does not take boxes: it is a proposer itself")
    file = existing_file(Path(path).expanduser(), "proposer", "export it as docs/models.md describes")
    return BoxProposer(Detector(file, backend.device))


def batching_for(settings: SegmenterSettings, backend: Backend) -> BatchSettings:
    """The batch settings for a model; on a GPU, unless set, batches are larger: they hardly take longer."""
    if backend.device.type == "cpu" or "batching" in settings.model_fields_set:
        return settings.batching
    return settings.batching.model_copy(update={"max_batch": backend.decode_batch})


def segmenter(settings: SegmenterSettings) -> Lifespan:
    """The lifespan of a segmenter's process; see `services.runtime.server`."""

    @contextlib.asynccontextmanager
    async def lifespan(server: Server) -> AsyncIterator[None]:
        reuse_freed_memory()
        backend, defaults = await asyncio.to_thread(load, settings)
        engine = SegmentEngine(
            backend,
            batching_for(settings, backend),
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
