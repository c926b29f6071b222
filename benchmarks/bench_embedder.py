"""EmbedRegions against one crop at a time, and over gRPC against the engine in this process."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.bench_serving import drive, on_loop
from benchmarks.harness import Case, Pair, constant, timed
from regionsearch.images import encode_image
from regionsearch.rpc.calls import acall
from regionsearch.rpc.channels import open_aio_channel
from regionsearch.tensors import mask_to_proto
from regionsearch.v1 import embed_pb2, embed_pb2_grpc, types_pb2
from services.embedder.backends import load_backend
from services.embedder.backends.base import Backend
from services.embedder.crops import crop_regions
from services.embedder.engine import EmbedEngine
from services.embedder.options import CropPolicy
from services.embedder.service import find_model
from services.embedder.servicer import EmbedServicer
from services.embedder.settings import EmbedderSettings
from services.embedder.tasks import Regions
from services.runtime.batcher import BatchSettings
from services.runtime.server import Server, serving
from services.torch_runtime.devices import choose_precision, find_devices

COUNT, HEIGHT, WIDTH = 64, 400, 600
FEW = 16  # regions for a large model on a CPU, where each takes a tenth of a second on both sides
IN_FLIGHT, CALLS = 4, 12  # of the gRPC comparison


def load(model: str, precision: str = "fp32", compile_model: bool = False, in_torch: bool = False) -> Backend:
    """A model on the first device; a large one without its weights, which do not change how long it takes.

    With `in_torch` its image tower runs in torch where it would run in ONNX Runtime.
    """
    device = find_devices("auto")[0]
    torch.manual_seed(0)
    files = find_model(model, random_weights=model != "pocket")
    if in_torch:
        files = replace(files, graph=None)
    return load_backend(files, device, choose_precision(precision, device), compile_model)


def scene(count: int = COUNT) -> Regions:
    """An image of smooth noise and regions with elliptic masks, as a segmenter finds them."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3)).astype(np.uint8))
    pixels = np.array(small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    sizes = np.exp(rng.uniform(np.log(24), np.log(200), (COUNT, 2)))
    corners = rng.uniform(0, (WIDTH, HEIGHT) - sizes)
    boxes = np.concatenate([corners, corners + sizes], axis=1).round().astype(np.float32)
    masks = []
    for x0, y0, x1, y1 in boxes.astype(int):
        y, x = np.mgrid[0 : y1 - y0, 0 : x1 - x0] + 0.5
        masks.append((x / (x1 - x0) - 0.5) ** 2 + (y / (y1 - y0) - 0.5) ** 2 < 0.25)
    return Regions(pixels, boxes[:count], masks[:count])


def one_by_one(backend: Any, regions: Regions) -> Callable[[], np.ndarray]:
    """The plain way: crop and resize with PIL, one `encode_image` per region; policy bbox."""
    image = Image.fromarray(regions.pixels)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (backend.mean, backend.std))

    @torch.inference_mode()
    def work() -> np.ndarray:
        vectors = []
        for box in regions.boxes:
            crop = image.crop(box.tolist()).resize((backend.size, backend.size), Image.Resampling.BICUBIC)
            pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1).float().div(255)
            batch = ((pixels - mean) / std).unsqueeze(0).to(backend.device)
            vectors.append(backend._model.encode_image(batch, normalize=True).cpu())
        return torch.cat(vectors).numpy()

    return work


def vectors_of(run: Callable[..., Any], regions: Regions, policy: CropPolicy) -> np.ndarray:
    """Our way: one request to the engine."""
    count = len(regions.boxes)
    vectors: np.ndarray = run(lambda made: made.embed_regions(lambda: regions, count, policy))
    return vectors


def engine(backend: Backend) -> Callable[[], contextlib.AbstractAsyncContextManager[EmbedEngine]]:
    @contextlib.asynccontextmanager
    async def context() -> AsyncIterator[EmbedEngine]:
        made = EmbedEngine([backend], BatchSettings(max_batch=COUNT))
        await made.warmup()
        yield made
        await made.close()

    return context


def regions_case(
    model: str, policy: CropPolicy, count: int = COUNT
) -> Callable[[], contextlib.AbstractContextManager[Pair]]:
    @contextlib.contextmanager
    def prepare() -> Iterator[Pair]:
        backend, regions = load(model), scene(count)
        reference = one_by_one(load(model, in_torch=True), regions)
        with on_loop(engine(backend)) as run:
            ours = functools.partial(vectors_of, run, regions, policy)
            if policy is CropPolicy.BBOX:
                agreement = (ours() * reference()).sum(1)
                assert agreement.min() > 0.999, f"not the same work: cosine {agreement.min()}"
            yield Pair(timed(ours), timed(reference))

    return prepare


def request_of(regions: Regions) -> embed_pb2.EmbedRegionsRequest:
    """The scene as a client sends it: a JPEG and run lengths."""
    request = embed_pb2.EmbedRegionsRequest(
        image=types_pb2.Image(encoded=encode_image(regions.pixels, "JPEG")),
        crop_policy=types_pb2.CROP_POLICY_BLUR,
    )
    for box, mask in zip(regions.boxes.astype(int), regions.masks or [], strict=True):
        whole = np.zeros((HEIGHT, WIDTH), bool)
        whole[box[1] : box[3], box[0] : box[2]] = mask
        x0, y0, x1, y1 = map(float, box)
        request.regions.add(
            box=types_pb2.Box(x_min=x0, y_min=y0, x_max=x1, y_max=y1), mask=mask_to_proto(whole)
        )
    return request


@contextlib.contextmanager
def loopback() -> Iterator[Pair]:
    """The same requests to the same engine: over gRPC, or by calling the servicer's method."""
    settings = EmbedderSettings(port=0, drain_delay_s=0)
    request = request_of(scene())

    @contextlib.asynccontextmanager
    async def service() -> AsyncIterator[tuple[Any, EmbedServicer]]:
        async with engine(load("pocket"))() as made:
            servicer = EmbedServicer(made, settings)

            @contextlib.asynccontextmanager
            async def lifespan(server: Server) -> AsyncIterator[None]:
                server.add(embed_pb2_grpc.add_EmbedServiceServicer_to_server, servicer)
                yield

            services = [embed_pb2.DESCRIPTOR.services_by_name["EmbedService"]]
            async with (
                serving(settings, services, lifespan) as server,
                open_aio_channel(f"127.0.0.1:{server.port}") as channel,
            ):
                yield embed_pb2_grpc.EmbedServiceStub(channel), servicer

    with on_loop(service) as run:
        yield Pair(
            lambda: run(lambda s: drive(lambda: acall(s[0].EmbedRegions, request), IN_FLIGHT, CALLS)) * COUNT,
            lambda: run(lambda s: drive(lambda: s[1].EmbedRegions(request, None), IN_FLIGHT, CALLS)) * COUNT,
        )


def precision_case(agreement: bool) -> Callable[[], contextlib.AbstractContextManager[Pair]]:
    @contextlib.contextmanager
    def prepare() -> Iterator[Pair]:
        full, reduced, regions = load("pocket"), load("pocket", "bf16"), scene()
        image = torch.from_numpy(np.ascontiguousarray(regions.pixels.transpose(2, 0, 1))).to(full.device)
        boxes = torch.from_numpy(regions.boxes)
        crops = crop_regions(image, boxes, None, CropPolicy.CONTEXT, full.size, mean=full.mean, std=full.std)

        def run(backend: Backend) -> np.ndarray:
            return backend.embed_crops(crops).cpu().numpy()

        if agreement:
            yield Pair(lambda: float((run(full) * run(reduced)).sum(1).min()), constant(1.0))
        else:
            yield Pair(timed(lambda: run(reduced)), timed(lambda: run(full)))

    return prepare


def cases() -> list[Case]:
    gpu = torch.cuda.is_available()
    large = COUNT if gpu else FEW
    return [
        Case(
            "embedder: 64 regions, pocket, bbox, against PIL and encode_image one by one",
            "s",
            regions_case("pocket", CropPolicy.BBOX),
            target=20.0 if gpu else 4.0,
        ),
        Case(
            "embedder: 64 regions, pocket, blur, against plain crops one by one",
            "s",
            regions_case("pocket", CropPolicy.BLUR),
        ),
        Case(
            f"embedder: {large} regions, ViT-B-32, bbox, against PIL and encode_image one by one",
            "s",
            regions_case("ViT-B-32", CropPolicy.BBOX, large),
            target=20.0 if gpu else None,  # on a CPU its arithmetic takes the time, in a batch or not
            runs=3 if gpu else 1,
            slow=not gpu,
        ),
        Case(
            "embedder: gRPC loopback against in process, 64 regions a call",
            "regions/s",
            loopback,
            "higher",
            0.90,
        ),
        Case("embedder: bf16 against fp32, 64 crops", "s", precision_case(agreement=False)),
        Case("embedder: bf16 agrees with fp32, least cosine of 64", "cosine", precision_case(True), "higher"),
    ]
