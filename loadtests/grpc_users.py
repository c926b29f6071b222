"""Backends that call one service each over gRPC."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from grpc.experimental import gevent as grpc_gevent
from locust import User, between, task

from loadtests.scenes import QUERIES, Scene
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.rpc.calls import CallPolicy, call
from regionsearch.rpc.channels import ChannelConfig, open_channel
from regionsearch.tensors import tensor_to_proto
from regionsearch.v1 import (
    embed_pb2,
    embed_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
    segment_pb2,
    segment_pb2_grpc,
    types_pb2,
)

grpc_gevent.init_gevent()  # before any channel: gRPC's waits then yield to the other users

POLICY = CallPolicy(timeout_s=60, unavailable_s=30)  # as an app with the client library would
DIMENSION = 256
COLLECTION = "load"
MODEL = types_pb2.ModelInfo(
    family="load",
    variant="random",
    weights_digest="0",
    dimension=DIMENSION,
    crop_policy=types_pb2.CROP_POLICY_BLUR,
)


class GrpcUser(User):
    """Calls one service and tells Locust how each call went.

    Attributes:
        service: Name of the option that holds the address.
        full_name: Full name of its gRPC service, whose health is watched.
    """

    abstract = True
    wait_time = between(0.2, 1.0)
    service: ClassVar[str]
    full_name: ClassVar[str]

    def on_start(self) -> None:
        self.random = random.Random(uuid.uuid4().int)
        address = getattr(self.environment.parsed_options, self.service)
        self.channel = open_channel(address, ChannelConfig(self.full_name))

    def on_stop(self) -> None:
        self.channel.close()

    def call(self, name: str, method: Callable[..., Any], request: Any) -> Any:
        """One call; its answer, or None where it failed."""
        start = time.perf_counter()
        response, error = None, None
        try:
            response = call(method, request, POLICY)
        except RegionSearchError as caught:
            error = caught
        self.environment.events.request.fire(
            request_type="gRPC",
            name=name,
            response_time=(time.perf_counter() - start) * 1e3,
            response_length=response.ByteSize() if response is not None else 0,
            exception=error,
            context={},
        )
        return response


class SegmentUser(GrpcUser):
    """Opens images and clicks on things in them."""

    service = "segmenter"
    full_name = "regionsearch.v1.SegmentService"

    def on_start(self) -> None:
        super().on_start()
        self.stub = segment_pb2_grpc.SegmentServiceStub(self.channel)
        self.open_image()

    @task(1)
    def open_image(self) -> None:
        self.scene = Scene(self.random.getrandbits(60))
        self._click("segment: first click")

    @task(8)
    def click(self) -> None:
        self._click("segment: next click")

    @task(1)
    def everything(self) -> None:
        request = segment_pb2.SegmentRequest(
            image=types_pb2.Image(encoded=Scene(self.random.getrandbits(60)).jpeg),
            everything=segment_pb2.EverythingOptions(selection=segment_pb2.SelectionOptions(max_regions=64)),
            priority=types_pb2.PRIORITY_BULK,
        )
        self.call("segment: everything", self.stub.Segment, request)

    def _click(self, name: str) -> None:
        x, y = self.scene.centre(self.random.randrange(99))
        prompt = segment_pb2.Prompt(points=[types_pb2.Point(x=x, y=y, label=1)])
        request = segment_pb2.SegmentRequest(
            image=types_pb2.Image(encoded=self.scene.jpeg), prompts=segment_pb2.Prompts(prompts=[prompt])
        )
        self.call(name, self.stub.Segment, request)


class EmbedUser(GrpcUser):
    """Embeds regions and words."""

    service = "embedder"
    full_name = "regionsearch.v1.EmbedService"

    def on_start(self) -> None:
        super().on_start()
        self.stub = embed_pb2_grpc.EmbedServiceStub(self.channel)

    @task(1)
    def regions(self) -> None:
        scene = Scene(self.random.getrandbits(60), shapes=16)
        cuts = [
            embed_pb2.RegionCut(box=types_pb2.Box(x_min=a, y_min=b, x_max=c, y_max=d))
            for a, b, c, d in scene.boxes
        ]
        request = embed_pb2.EmbedRegionsRequest(
            image=types_pb2.Image(encoded=scene.jpeg), regions=cuts, crop_policy=types_pb2.CROP_POLICY_BLUR
        )
        self.call("embed: 16 regions", self.stub.EmbedRegions, request)

    @task(2)
    def texts(self) -> None:
        # A number makes the text new: otherwise only the cache would be measured.
        text = f"{self.random.choice(QUERIES)} {self.random.randrange(10**6)}"
        self.call("embed: text", self.stub.EmbedTexts, embed_pb2.EmbedTextsRequest(texts=[text]))


class SearchUser(GrpcUser):
    """Writes and searches random vectors in a collection of its own kind."""

    service = "searcher"
    full_name = "regionsearch.v1.SearchService"

    def on_start(self) -> None:
        super().on_start()
        self.numbers = np.random.default_rng(self.random.getrandbits(60))
        self.stub = search_pb2_grpc.SearchServiceStub(self.channel)
        try:
            collection = search_pb2.CreateCollectionRequest(name=COLLECTION, model=MODEL)
            call(self.stub.CreateCollection, collection, POLICY)
        except RegionSearchError as error:
            if error.kind is not Kind.ALREADY_EXISTS:
                raise
        self.write()

    @task(10)
    def search(self) -> None:
        request = search_pb2.SearchRequest(
            collection=COLLECTION,
            model=MODEL,
            queries=tensor_to_proto(self._vectors(1)),
            group_by=search_pb2.GROUP_BY_IMAGE,
            page_size=20,
        )
        self.call("search: nearest", self.stub.Search, request)

    @task(1)
    def write(self) -> None:
        image = search_pb2.StoredImage(image_id=uuid.uuid4().hex, name="load", width=640, height=480)
        records = [
            search_pb2.Record(
                record_id=f"{image.image_id}-{index}",
                image_id=image.image_id,
                level=search_pb2.LEVEL_REGION if index else search_pb2.LEVEL_IMAGE,
                box=types_pb2.Box(x_max=640, y_max=480),
                area=640 * 480,
            )
            for index in range(21)
        ]
        request = search_pb2.UpsertRequest(
            collection=COLLECTION,
            model=MODEL,
            images=[image],
            records=records,
            vectors=tensor_to_proto(self._vectors(len(records))),
        )
        self.call("search: write an image", self.stub.Upsert, request)

    def _vectors(self, count: int) -> np.ndarray:
        return self.numbers.standard_normal((count, DIMENSION), dtype=np.float32)
