"""The services behind the gateway: channels, typed errors, readiness, and which models' vectors may meet."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.rights import require_visible
from gateway.settings import GatewaySettings
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.rpc.calls import (
    SEEN_HEADER,
    CallPolicy,
    Metadata,
    Method,
    acall,
    caller_metadata,
    remaining,
)
from regionsearch.rpc.channels import ChannelConfig
from regionsearch.rpc.replicas import open_replicas
from regionsearch.schemas.responses.values import ServiceState
from regionsearch.v1 import embed_pb2_grpc, search_pb2, search_pb2_grpc, segment_pb2_grpc, types_pb2
from services.runtime.logs import client_interceptors

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")

_ADDRESS = re.compile(r"\b(ipv4|ipv6|unix|dns):")
_OUT_OF_REACH = {
    Kind.UNAVAILABLE: "is not ready",
    Kind.DEADLINE_EXCEEDED: "took too long",
    Kind.OVERLOADED: "is overloaded",
}

_log = structlog.get_logger(__name__)


@contextlib.contextmanager
def remap_error_field(theirs: str, ours: str) -> Iterator[None]:
    """Calls a field of a service's request what it is called in the request that the caller sent."""
    try:
        yield
    except RegionSearchError as error:
        if error.field is not None and error.field.startswith(theirs):
            field = error.field
            error.field = ours + field.removeprefix(theirs)
            error.message = error.message.replace(field, error.field)  # the name alone may be a common word
        raise


class ServiceClient:
    """A service with all its replicas."""

    def __init__(self, name: str, target: str, service: str, settings: GatewaySettings) -> None:
        """Opens the channel, on the event loop that will use it.

        Args:
            name: Name in messages, such as "embedder".
            target: Address, see `regionsearch.rpc.channels.resolve_target`.
            service: Full name of its gRPC service.
            settings: TLS, key and limits.
        """
        self.name = name
        self.target = target
        self._service = service
        self._probe_s = settings.timeouts.probe_s
        self._restart_s = settings.timeouts.restart_s
        key = settings.backend_api_key
        self._api_key = key.get_secret_value() if key else None
        config = ChannelConfig(service, settings.backend_tls.files(), settings.max_message_bytes)
        interceptors = client_interceptors() if settings.otlp_endpoint else ()
        self.channel = open_replicas(target, config, interceptors)

    async def call(
        self,
        method: Method[RequestT, grpc.aio.UnaryUnaryCall[RequestT, ResponseT]],
        request: RequestT,
        *,
        deadline_fraction: float = 1.0,
        retry_overload: bool = False,
    ) -> ResponseT:
        """Calls a method of this service within the surrounding deadline.

        Args:
            method: A method of a stub on this service's channel.
            request: The request message.
            deadline_fraction: The part of the time left that this call may take; the rest is for the stages
                after it.
            retry_overload: Whether to try again after the time that an overloaded service asks for.

        Raises:
            RegionSearchError: The service's error, or one that names the service if it did not answer.
        """
        self._check(request)
        left = remaining()
        policy = CallPolicy(
            timeout_s=60.0 if left is None else max(0.001, left * deadline_fraction),
            api_key=self._api_key,
            overload_attempts=5 if retry_overload else 1,
            unavailable_s=self._restart_s,
        )
        try:
            answer = await acall(method, request, policy, self._metadata())
        except RegionSearchError as error:
            if _ADDRESS.search(error.message):  # gRPC's own words, which are not for callers
                _log.info("a service is out of reach", service=self.name, reason=error.message)
                error.message = "it cannot be reached"
            if error.kind in _OUT_OF_REACH:
                error.message = f"the {self.name} {_OUT_OF_REACH[error.kind]}: {error.message}"
            if error.kind is Kind.UNAVAILABLE and error.retry_after_s is None:
                error.retry_after_s = 1.0
            raise
        self._answered(answer)
        return answer

    def _check(self, request: object) -> None:
        """Refuses what the surrounding request has no right to."""

    def _metadata(self) -> Metadata:
        """The headers of a call."""
        return caller_metadata()

    def _answered(self, answer: object) -> None:
        """Takes note of an answer."""

    async def readiness(self) -> ServiceState:
        """Asks whether some replica serves."""
        stub = health_pb2_grpc.HealthStub(self.channel)
        try:
            answer = await stub.Check(
                health_pb2.HealthCheckRequest(service=self._service), timeout=self._probe_s
            )
        except grpc.RpcError as error:
            return ServiceState(
                ready=False, detail=f"{self.target} does not answer: {error.details() or error.code().name}"
            )
        if answer.status == health_pb2.HealthCheckResponse.SERVING:
            return ServiceState(ready=True, detail="serving")
        return ServiceState(ready=False, detail=f"{self.target} is loading its model or draining")


class SearcherClient(ServiceClient):
    """The searcher that writes, or those that reads are spread over.

    Reads say which write this gateway has seen, so that a read replica that lacks it waits a moment for it. A
    collection that the caller may not see is not asked about: it is NOT_FOUND.
    """

    def __init__(self, target: str, settings: GatewaySettings, seen: SeenWrites) -> None:
        super().__init__("searcher", target, "regionsearch.v1.SearchService", settings)
        self.stub = search_pb2_grpc.SearchServiceStub(self.channel)
        self._seen = seen

    def _check(self, request: object) -> None:
        name = getattr(request, "collection", "") or getattr(request, "name", "")
        if name:
            require_visible(name)

    def _metadata(self) -> Metadata:
        return (*super()._metadata(), (SEEN_HEADER, str(self._seen.seq)))

    def _answered(self, answer: object) -> None:
        self._seen.seq = max(self._seen.seq, getattr(answer, "seq", 0))


@dataclass
class SeenWrites:
    """The last write that answers to this gateway have named."""

    seq: int = 0


_from_writer: contextvars.ContextVar[bool] = contextvars.ContextVar("from_writer", default=False)


@contextlib.contextmanager
def reading_from_writer() -> Iterator[None]:
    """Reads inside go to the searcher that writes: decisions to write or delete depend on them."""
    token = _from_writer.set(True)
    try:
        yield
    finally:
        _from_writer.reset(token)


class Embedder(ServiceClient):
    """The embedders of one model, with their stub."""

    def __init__(self, name: str, target: str, settings: GatewaySettings) -> None:
        super().__init__(name, target, "regionsearch.v1.EmbedService", settings)
        self.stub = embed_pb2_grpc.EmbedServiceStub(self.channel)


class Services:
    """The segmenter, the embedders and the searcher. Make it on the event loop that will use it.

    Attributes:
        embedder: Makes the vectors of new collections.
        embedders: That one, then the one of `other_embedder` if there is one.
        searcher: The one that writes.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        def backend(name: str, target: str, service: str) -> ServiceClient:
            return ServiceClient(name, target, f"regionsearch.v1.{service}", settings)

        self.segmenter = backend("segmenter", settings.segmenter, "SegmentService")
        self.embedder = Embedder("embedder", settings.embedder, settings)
        self.embedders = [self.embedder]
        if settings.other_embedder:
            self.embedders.append(Embedder("other embedder", settings.other_embedder, settings))
        seen = SeenWrites()
        self.searcher = SearcherClient(settings.searcher, settings, seen)
        self._readers = self.searcher
        if settings.searcher_reads:
            self._readers = SearcherClient(settings.searcher_reads, settings, seen)
        self.segment = segment_pb2_grpc.SegmentServiceStub(self.segmenter.channel)
        self.search = self.searcher.stub

    @property
    def all(self) -> Sequence[ServiceClient]:
        """Those that the gateway cannot do without, in the order of the pipeline."""
        return (self.segmenter, self.embedder, self._readers)

    @property
    def reader(self) -> SearcherClient:
        """Where reads go: the writer and its replicas, or only the writer (see `reading_from_writer`)."""
        return self.searcher if _from_writer.get() else self._readers

    async def readiness(self) -> dict[str, ServiceState]:
        """Of every service, by name."""
        found = await asyncio.gather(*(backend.readiness() for backend in self.all))
        return {backend.name: state for backend, state in zip(self.all, found, strict=True)}

    async def close(self) -> None:
        """Closes the channels."""
        every = {self.segmenter, *self.embedders, self.searcher, self._readers}
        await asyncio.gather(*(backend.channel.close(None) for backend in every))


def same_model(one: types_pb2.ModelInfo, other: types_pb2.ModelInfo) -> bool:
    """Whether embeddings of both are comparable; a crop policy that is unspecified agrees with every one.

    Features that follow a collection's embeddings do not matter.
    """
    unspecified = types_pb2.CROP_POLICY_UNSPECIFIED
    policies = {one.crop_policy, other.crop_policy} - {unspecified}
    mine, theirs = (model.dimension - model.features.model.dimension for model in (one, other))
    return len(policies) < 2 and mine == theirs and same_weights(one, other)


def same_weights(one: types_pb2.ModelInfo, other: types_pb2.ModelInfo) -> bool:
    """Whether both are the same network, whatever it is asked for."""
    names = ("family", "variant", "weights_digest")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def without_policy(model: types_pb2.ModelInfo) -> types_pb2.ModelInfo:
    """The model itself, whatever crops it is shown."""
    bare = types_pb2.ModelInfo()
    bare.CopyFrom(model)
    bare.crop_policy = types_pb2.CROP_POLICY_UNSPECIFIED
    return bare


def model_mismatch(collection: search_pb2.Collection, model: types_pb2.ModelInfo) -> RegionSearchError:
    """The error of a collection whose vectors are of another model than the embedder's."""
    return RegionSearchError(
        Kind.MODEL_MISMATCH,
        f"collection {collection.name!r} was made with {describe(collection.model)}, the embedder now serves "
        f"{describe(model)}; start the embedder with the former or make a new collection",
        field="collection",
        metadata={"expected": describe(collection.model), "actual": describe(model)},
    )


def describe(model: types_pb2.ModelInfo) -> str:
    """A model's identity for people."""
    policy = types_pb2.CropPolicy.Name(model.crop_policy).removeprefix("CROP_POLICY_").lower()
    dimension = f", {model.dimension}-d, {policy}" if model.dimension else ""
    return f"{model.family} {model.variant} ({model.weights_digest[:12]}{dimension})"
