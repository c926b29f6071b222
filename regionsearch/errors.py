"""The closed set of errors, and their one mapping to and from gRPC.

Every failure that a caller can meet is a `RegionSearchError` with a `Kind`. A servicer lets it escape; the
runtime's interceptor turns it into a gRPC status with google.rpc details (`to_status`), and the client turns
that status back into the same exception (`from_rpc_error`). The gateway maps kinds to HTTP in one table.
"""

from __future__ import annotations

import enum
from typing import cast

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "regionsearch"

# UTF-8 bytes of a text in a status. It is sent three times (percent-encoded in one header, twice in base64),
# and gRPC throws a call's whole status away when its headers pass 8 KiB.
_MOST_BYTES = 1000


class Kind(enum.Enum):
    """What went wrong, from the caller's point of view. The value is the stable machine-readable reason."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"  # the request can never succeed as it is; `field` says where
    UNSUPPORTED_IMAGE = "UNSUPPORTED_IMAGE"  # bytes that are no image we read, or a damaged one
    TOO_LARGE = "TOO_LARGE"  # over a configured limit: pixels, bytes, items
    UNAUTHENTICATED = "UNAUTHENTICATED"  # no key, or an unknown one
    PERMISSION_DENIED = "PERMISSION_DENIED"  # a known key without the scope
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    MODEL_MISMATCH = "MODEL_MISMATCH"  # a vector or query of another model or crop policy
    FAILED_PRECONDITION = (
        "FAILED_PRECONDITION"  # the state of the system forbids it until something else is done
    )
    ABORTED = "ABORTED"  # a conflicting change won; read again and retry
    OVERLOADED = "OVERLOADED"  # a queue is full; retry after `retry_after_s`
    UNAVAILABLE = "UNAVAILABLE"  # starting, draining or unreachable; safe to retry
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    STORAGE_FULL = "STORAGE_FULL"  # the disk refuses writes; reads go on
    DATA_LOSS = "DATA_LOSS"  # a file on disk is damaged or foreign
    UNIMPLEMENTED = "UNIMPLEMENTED"  # this backend cannot do it; the message names one that can
    INTERNAL = "INTERNAL"  # a bug or a broken device


_CODES: dict[Kind, grpc.StatusCode] = {
    Kind.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    Kind.UNSUPPORTED_IMAGE: grpc.StatusCode.INVALID_ARGUMENT,
    Kind.TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    Kind.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Kind.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Kind.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Kind.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Kind.MODEL_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    Kind.FAILED_PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Kind.ABORTED: grpc.StatusCode.ABORTED,
    Kind.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Kind.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Kind.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Kind.CANCELLED: grpc.StatusCode.CANCELLED,
    Kind.STORAGE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Kind.DATA_LOSS: grpc.StatusCode.DATA_LOSS,
    Kind.UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    Kind.INTERNAL: grpc.StatusCode.INTERNAL,
}

# What a bare status (of a proxy, of gRPC itself) means. An oversize message is RESOURCE_EXHAUSTED without
# RetryInfo, so that code alone must not read as "try again". CANCELLED is how a server that stops drops a
# call; a caller who cancels gets no status, but the end of its own task.
_KINDS: dict[grpc.StatusCode, Kind] = {
    code: Kind.__members__.get(code.name, Kind.INTERNAL) for code in grpc.StatusCode
} | {
    grpc.StatusCode.OUT_OF_RANGE: Kind.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Kind.TOO_LARGE,
    grpc.StatusCode.CANCELLED: Kind.UNAVAILABLE,
}

_OVER_THE_CAP = "message larger than max"  # how gRPC says it, of what is sent and what is received
# How asyncio's gRPC says that a request could not be sent because its call had ended; why, it does not say.
_ENDED_MEANWHILE = "Internal error from Core"


class RegionSearchError(Exception):
    """A typed failure.

    Args:
        kind: What went wrong.
        message: One sentence that names the cause and the remedy.
        field: Dotted path of the offending request field (``query.text``), if any.
        retry_after_s: Seconds after which the same call may succeed; only with kinds that may be retried.
        metadata: Extra machine-readable facts, such as both model names of a mismatch.

    Attributes:
        request_id: Id of the failed request in the server's log; None if unknown.
    """

    request_id: str | None = None

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        field: str | None = None,
        retry_after_s: float | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s
        self.metadata = metadata or {}

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.kind, self.message), self.__dict__

    def __repr__(self) -> str:
        where = f", field={self.field!r}" if self.field else ""
        return f"RegionSearchError({self.kind.name}, {self.message!r}{where})"


def invalid(field: str, message: str) -> RegionSearchError:
    """An INVALID_ARGUMENT error about one request field."""
    return RegionSearchError(Kind.INVALID_ARGUMENT, message, field=field)


def too_large(field: str, message: str) -> RegionSearchError:
    """A TOO_LARGE error about one request field; the message names the limit and its setting."""
    return RegionSearchError(Kind.TOO_LARGE, message, field=field)


def not_found(field: str, message: str) -> RegionSearchError:
    """A NOT_FOUND error about the thing that `field` names."""
    return RegionSearchError(Kind.NOT_FOUND, message, field=field)


def overloaded(message: str, retry_after_s: float) -> RegionSearchError:
    """An OVERLOADED error: refused at once, worth another try after `retry_after_s` seconds."""
    return RegionSearchError(Kind.OVERLOADED, message, retry_after_s=retry_after_s)


def to_status(error: RegionSearchError) -> grpc.Status:
    """Packs an error as a gRPC status with ErrorInfo, and BadRequest or RetryInfo where they apply.

    Texts that would not fit into the headers of an answer are cut.
    """
    message = _short(error.message)
    status = status_pb2.Status(code=_CODES[error.kind].value[0], message=message)
    facts = {key: _short(value, _MOST_BYTES // 4) for key, value in error.metadata.items()}
    details: list[
        error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo
    ] = [error_details_pb2.ErrorInfo(reason=error.kind.value, domain=DOMAIN, metadata=facts)]
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_short(error.field, _MOST_BYTES // 4), description=message
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return rpc_status.to_status(status)


def _short(text: str, most: int = _MOST_BYTES) -> str:
    encoded = text.encode("utf-8", "replace")
    return encoded.decode() if len(encoded) <= most else encoded[: most - 3].decode("utf-8", "ignore") + "…"


def from_rpc_error(error: grpc.RpcError) -> RegionSearchError:
    """The exception that a failed call stands for; a status without our details keeps its nearest kind.

    Args:
        error: What a sync or asyncio stub raised.

    Returns:
        An error with the kind, field and delay that the server sent, or those its bare code implies.
    """
    code: grpc.StatusCode = error.code()
    message = error.details() or code.name
    if _OVER_THE_CAP in message:
        message += "; send less at once or ask for less, or raise max_message_bytes on both ends"
    if code is grpc.StatusCode.INTERNAL and message == _ENDED_MEANWHILE:
        return RegionSearchError(Kind.UNAVAILABLE, "the call ended while a request was being sent; try again")
    result = RegionSearchError(_KINDS.get(code, Kind.INTERNAL), message)
    try:
        status = rpc_status.from_call(cast(grpc.Call, error))
    except (ValueError, DecodeError, AttributeError):  # details of a proxy that do not match its own code
        status = None
    if status is None:
        return result
    for packed in status.details:
        _read_detail(packed, result)
    return result


def from_status(status: status_pb2.Status) -> RegionSearchError:
    """The error that a status inside of an answer stands for; see `from_rpc_error`."""
    code = next((code for code in grpc.StatusCode if code.value[0] == status.code), grpc.StatusCode.UNKNOWN)
    result = RegionSearchError(_KINDS.get(code, Kind.INTERNAL), status.message or code.name)
    for packed in status.details:
        _read_detail(packed, result)
    return result


def _read_detail(packed: any_pb2.Any, result: RegionSearchError) -> None:
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    if packed.Unpack(info):
        result.metadata = dict(info.metadata)
        if info.domain == DOMAIN and info.reason in Kind.__members__:
            result.kind = Kind[info.reason]
    elif packed.Unpack(bad) and bad.field_violations:
        result.field = bad.field_violations[0].field
    elif packed.Unpack(retry):
        result.retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
