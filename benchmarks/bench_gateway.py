"""The gateway: what the whole pipeline costs compared with its slowest stage.

Every process runs by itself, as in production. Once the models are stand-ins that take a fixed time on a
device of their own, as on machines with a GPU, so that what is measured is the pipeline; once they are the
pocket models, which share this machine's processors with everything else, so that the reference is what they
do without a gateway.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import io
import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import httpx
import numpy as np
import torch
from PIL import Image, ImageDraw
from segment_anything import SamAutomaticMaskGenerator

from benchmarks import bench_embedder, segmenter_rig
from benchmarks.harness import Case, Pair
from benchmarks.simulated_services import HEIGHT, WIDTH, Processes
from gateway.records import ImageFile, records, stored_image
from gateway.settings import GatewaySettings
from regionsearch.images import image_id
from regionsearch.rpc.calls import chunked
from regionsearch.rpc.channels import open_channel
from regionsearch.tensors import tensor_from_proto, tensor_to_proto
from regionsearch.v1 import (
    embed_pb2,
    embed_pb2_grpc,
    region_search_pb2,
    search_pb2,
    search_pb2_grpc,
    segment_pb2,
    segment_pb2_grpc,
    types_pb2,
)
from services.embedder.tasks import Regions
from services.segmenter.options import SelectionOptions

SCENES = Path(__file__).parents[1] / "examples" / "scenes"
CLIENTS = 8
IMAGES = 64
REAL_IMAGES = 16
EMBED_CHUNK: int = GatewaySettings.model_fields["embed_chunk"].default
SEGMENT_S, EMBED_REGION_S = 0.050, 0.001  # on the stand-ins' devices


def sample_image(number: int) -> bytes:
    """A JPEG of some shapes, different for every number."""
    random = np.random.default_rng(number)
    image = Image.new("RGB", (WIDTH, HEIGHT), tuple(int(c) for c in random.integers(120, 255, 3)))
    pen = ImageDraw.Draw(image)
    for _ in range(10):
        left, top = int(random.integers(0, WIDTH - 90)), int(random.integers(0, HEIGHT - 90))
        side = int(random.integers(30, 90))
        pen.ellipse(
            (left, top, left + side, top + side), fill=tuple(int(c) for c in random.integers(0, 255, 3))
        )
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


@dataclass(frozen=True)
class Pipeline:
    """All four processes: the gateway's URL and the services' addresses."""

    url: str
    segmenter: str
    embedder: str
    searcher: str
    cpu_s: Callable[[], float]  # of all four since they started


@contextlib.contextmanager
def pipeline(fixed: bool) -> Iterator[Pipeline]:
    """Starts them, with stand-ins for the models or with the pocket models."""
    with tempfile.TemporaryDirectory() as name, Processes(Path(name)) as processes:
        if fixed:
            segmenter = processes.stand_in("segmenter", item_s=SEGMENT_S)
            embedder = processes.stand_in("embedder", item_s=EMBED_REGION_S)
        else:
            segmenter = processes.start("segmenter")
            embedder = processes.start("embedder")
        services = {"segmenter": segmenter, "embedder": embedder, "searcher": processes.searcher()}
        yield Pipeline(url=processes.gateway(**services), cpu_s=processes.cpu_s, **services)


def scene_image(number: int) -> bytes:
    """One of the bundled scenes, different for every number."""
    scenes = sorted(SCENES.glob("*.jpg"))
    image = Image.open(scenes[number % len(scenes)]).convert("RGB")
    image = image.crop((number // len(scenes), 0, *image.size))  # a column less each time round
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95)
    return out.getvalue()


def drive(call: Callable[[bytes], object], images: list[bytes], clients: int = CLIENTS) -> float:
    """Several callers, one image after the other each; returns images per second."""
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        begin = time.perf_counter()
        list(pool.map(call, images))
        return len(images) / (time.perf_counter() - begin)


def sender(http: httpx.Client, url: str) -> Callable[[bytes], None]:
    """Takes in an image that must be new."""

    def send(data: bytes) -> None:
        answer = http.post(f"{url}/v1/collections/default/images", files=[("files", ("p.jpg", data))])
        assert answer.json()["results"][0]["outcome"] == "created", answer.text

    return send


CallContext = Callable[[bytes], object]


@contextlib.contextmanager
def segmenter_alone(found: Pipeline) -> Iterator[CallContext]:
    """The slowest stage: what an ingest asks of the segmenter, and nothing else."""
    with open_channel(found.segmenter) as channel:
        stub = segment_pb2_grpc.SegmentServiceStub(channel)

        def segment(data: bytes) -> segment_pb2.SegmentResponse:
            image = types_pb2.Image(encoded=data)
            options = segment_pb2.EverythingOptions(selection=segment_pb2.SelectionOptions())
            return stub.Segment(segment_pb2.SegmentRequest(image=image, everything=options), timeout=300)

        yield segment


@contextlib.contextmanager
def all_stages(found: Pipeline) -> Iterator[CallContext]:
    """Every call to the services that an ingest makes, without the gateway: what the models cost together."""
    with (
        segmenter_alone(found) as segment,
        open_channel(found.embedder) as embedder,
        open_channel(found.searcher) as searcher,
        concurrent.futures.ThreadPoolExecutor(2 * CLIENTS) as pool,
    ):
        embed = embed_pb2_grpc.EmbedServiceStub(embedder)
        search = search_pb2_grpc.SearchServiceStub(searcher)
        model = embed.GetModel(embed_pb2.EmbedServiceGetModelRequest(), timeout=60).model
        search.CreateCollection(search_pb2.CreateCollectionRequest(name="direct", model=model), timeout=60)

        def write(data: bytes) -> object:
            file = ImageFile(data, image_id(data), "image/jpeg")
            known = search_pb2.GetRecordsRequest(
                collection="direct", image_ids=[file.image_id], images_only=True
            )
            assert not search.GetRecords(known, timeout=60).images
            segmented = segment(data)
            assert isinstance(segmented, segment_pb2.SegmentResponse)
            image = types_pb2.Image(encoded=data)

            def embed_part(part: tuple[bool, Sequence[types_pb2.Region]]) -> list[np.ndarray]:
                include_image, regions = part
                request = embed_pb2.EmbedRegionsRequest(
                    image=image,
                    regions=[embed_pb2.RegionCut(box=region.box, mask=region.mask) for region in regions],
                    crop_policy=model.crop_policy,
                    include_image=include_image,
                )
                answer = embed.EmbedRegions(request, timeout=300)
                tensors = [answer.image_vector, answer.vectors] if include_image else [answer.vectors]
                return [tensor_from_proto(one, "vectors", ndim=2) for one in tensors]

            chunks = list(chunked(segmented.regions, EMBED_CHUNK)) or [[]]
            parts = pool.map(embed_part, [(n == 0, chunk) for n, chunk in enumerate(chunks)])
            vectors = [one for part in parts for one in part]
            about = region_search_pb2.IngestImageRequest()
            upsert = search_pb2.UpsertRequest(
                collection="direct",
                model=model,
                images=[stored_image(about, file, segmented, None)],
                records=records(file.image_id, segmented),
                vectors=tensor_to_proto(np.concatenate(vectors)),
                skip_existing=True,
            )
            return search.Upsert(upsert, timeout=60)

        yield write


@contextlib.contextmanager
def plain_script(_: Pipeline) -> Iterator[CallContext]:
    """What scripts do, with the same weights: the published generator, one crop after the other, FAISS."""
    backend, options = segmenter_rig.pocket()
    tower = bench_embedder.load("pocket", in_torch=True)
    generator = SamAutomaticMaskGenerator(backend.model, **asdict(options))
    most = SelectionOptions().max_regions
    index = faiss.IndexFlatIP(tower.dimension)
    alone = threading.Lock()

    def write(data: bytes) -> None:
        with alone:
            pixels = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
            found = sorted(generator.generate(pixels), key=lambda mask: -mask["predicted_iou"])
            corners = np.array([mask["bbox"] for mask in found[:most]], np.float32).reshape(-1, 4)
            boxes = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:] + 1], axis=1)
            if len(boxes):
                index.add(bench_embedder.one_by_one(tower, Regions(pixels, boxes, None))())

    yield write


def ingest(
    fixed: bool,
    count: int,
    reference: Callable[[Pipeline], contextlib.AbstractContextManager[CallContext]],
    clients: int = CLIENTS,
    image: Callable[[int], bytes] = sample_image,
) -> Callable[[], contextlib.AbstractContextManager[Pair]]:
    """Preparation: images a second through the gateway, against what `reference` does, same callers."""

    @contextlib.contextmanager
    def prepared() -> Iterator[Pair]:
        numbers = itertools.count()
        with (
            pipeline(fixed) as found,
            httpx.Client(timeout=300) as http,
            reference(found) as call,
        ):

            def fresh() -> list[bytes]:
                return [image(next(numbers)) for _ in range(count)]

            send = sender(http, found.url)
            yield Pair(lambda: drive(send, fresh(), clients), lambda: drive(call, fresh(), clients))

    return prepared


@contextlib.contextmanager
def ingest_cpu(count: int) -> Iterator[Pair]:
    """CPU seconds an image of all four processes, against those of a plain script, one thread each.

    Other work on the machine hardly changes them.
    """
    numbers = itertools.count()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pipeline(False) as found, httpx.Client(timeout=300) as http, plain_script(found) as script:

        def spent(call: CallContext, cpu_s: Callable[[], float], images: int) -> float:
            fresh = [scene_image(next(numbers)) for _ in range(images)]
            before = cpu_s()
            drive(call, fresh, clients=4)
            return (cpu_s() - before) / images

        send = sender(http, found.url)
        yield Pair(
            lambda: spent(send, found.cpu_s, count), lambda: spent(script, time.process_time, count // 4)
        )
    torch.set_num_threads(threads)


def cases() -> list[Case]:
    """All comparisons of the gateway."""
    return [
        Case(
            "gateway: ingest by 8 clients, devices of fixed speed, against the segmenter alone",
            "images/s",
            ingest(True, IMAGES, segmenter_alone),
            better="higher",
            target=0.85,
        ),
        Case(
            "gateway: ingest by 8 clients, pocket models, against the same calls without a gateway",
            "images/s",
            ingest(False, REAL_IMAGES, all_stages),
            better="higher",
            target=0.85,
            runs=3,
            slow=True,
        ),
        Case(
            "gateway: ingest by 4 clients, pocket models, against generator, single crops and faiss",
            "images/s",
            ingest(False, REAL_IMAGES // 2, plain_script, clients=4, image=scene_image),
            better="higher",
            target=10.0,
            runs=2,
            slow=True,
        ),
        Case(
            "gateway: CPU time of ingest, pocket models, against generator, single crops and faiss",
            "s/image",
            functools.partial(ingest_cpu, REAL_IMAGES),
            target=10.0,
            runs=2,
            slow=True,
        ),
        # No promise: on one machine the stages take their processor time from each other.
        Case(
            "gateway: ingest by 8 clients, pocket models, against the segmenter alone",
            "images/s",
            ingest(False, REAL_IMAGES, segmenter_alone),
            better="higher",
            runs=3,
            slow=True,
        ),
    ]
