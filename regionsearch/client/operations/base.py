"""What an operation is: its requests over HTTP and gRPC, and how their answers are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
from google.protobuf.message import Message

from regionsearch.schemas.requests.values import Body
from regionsearch.schemas.responses.values import Response

T_co = TypeVar("T_co", covariant=True)
ModelT = TypeVar("ModelT", bound=Response)


@dataclass(frozen=True)
class HttpRequest:
    """A request of the HTTP API."""

    method: str
    path: str
    body: Body | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[tuple[str, tuple[str, bytes]]] | None = None
    form: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class GrpcCall(Generic[T_co]):
    """An operation over gRPC.

    Attributes:
        method: Returns the method of a stub on the given channel.
        message: Makes the request; reads files, so that it may block.
        read: Reads the answer.
    """

    method: Callable[[Any], Any]
    message: Callable[[], Message]
    read: Callable[[Any], T_co]


@dataclass(frozen=True)
class Operation(Generic[T_co]):
    """One operation.

    Attributes:
        name: For messages.
        request: Makes the request over HTTP; reads files, so that it may block.
        read: Reads the answer over HTTP.
        grpc: Over gRPC; None where the gateway offers it over HTTP only.
        answers: Further HTTP statuses that are answers and not errors.
        retry_overload: Whether it is tried again when the server is busy or away.
    """

    name: str
    request: Callable[[], HttpRequest]
    read: Callable[[httpx.Response], T_co]
    grpc: GrpcCall[T_co] | None = None
    answers: tuple[int, ...] = ()
    retry_overload: bool = True


def path_of(collection: str, *parts: str) -> str:
    """The path of a collection or of something in it; no part can leave its place."""
    return "/".join(["/v1/collections", *(quote(part, safe="") for part in (collection, *parts))])


def given(**options: Any) -> dict[str, Any]:
    """The options that are set."""
    return {name: value for name, value in options.items() if value is not None}


def answer(model: type[ModelT]) -> Callable[[httpx.Response], ModelT]:
    """Reads an answer as an object of a model."""
    return lambda response: model.model_validate_json(response.content)


def document(response: httpx.Response) -> dict[str, Any]:
    """An answer that is a JSON document."""
    return dict(response.json())


def nothing(answer: object) -> None:
    """An answer that says nothing."""
