import grpc
import pytest

from regionsearch.errors import Kind, RegionSearchError, from_rpc_error, invalid, overloaded, to_status
from regionsearch.v1 import embed_pb2
from tests.runtime.conftest import echo_server


class Refused(grpc.aio.AioRpcError):
    """What a stub raises when a server answers with a status."""

    def __init__(self, status: grpc.Status) -> None:
        super().__init__(
            status.code, grpc.aio.Metadata(), grpc.aio.Metadata(*status.trailing_metadata), status.details
        )


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_survives_the_wire(kind: Kind) -> None:
    sent = RegionSearchError(kind, "because", field="a.b", retry_after_s=1.25, metadata={"model": "x"})
    received = from_rpc_error(Refused(to_status(sent)))
    assert received.kind is kind
    assert received.message == "because"
    assert received.field == "a.b"
    assert received.retry_after_s == 1.25
    assert received.metadata == {"model": "x"}


def test_fields_that_were_not_set_stay_unset() -> None:
    received = from_rpc_error(Refused(to_status(RegionSearchError(Kind.NOT_FOUND, "gone"))))
    assert received.field is None
    assert received.retry_after_s is None


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, Kind.UNAVAILABLE),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Kind.TOO_LARGE),  # without RetryInfo: an oversize message
        (grpc.StatusCode.CANCELLED, Kind.UNAVAILABLE),  # by a server that stops
        (grpc.StatusCode.UNKNOWN, Kind.INTERNAL),
        (grpc.StatusCode.OUT_OF_RANGE, Kind.INVALID_ARGUMENT),
    ],
)
def test_a_bare_status_keeps_its_nearest_kind(code: grpc.StatusCode, kind: Kind) -> None:
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "from a proxy")
    assert from_rpc_error(error).kind is kind


def test_a_call_that_ended_while_it_was_written_to_may_be_made_again() -> None:
    """All that asyncio's gRPC knows then is this text; see grpc.aio._call._StreamRequestMixin._write."""
    metadata = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, metadata, metadata, "Internal error from Core")
    assert from_rpc_error(error).kind is Kind.UNAVAILABLE


def test_shorthands_fill_in_field_and_delay() -> None:
    assert invalid("query.text", "say something").field == "query.text"
    assert overloaded("full", 0.5).retry_after_s == 0.5


@pytest.mark.parametrize("letter", ["a", "é", "\N{GRINNING FACE}"])
async def test_an_error_with_a_long_text_arrives_as_what_it_is(letter: str) -> None:
    """gRPC drops a status of more than 8 KiB, and tells the caller of headers instead."""
    sent = RegionSearchError(
        Kind.NOT_FOUND, letter * 20_000, field=letter * 20_000, metadata={"name": letter * 20_000}
    )

    async def refuse(request: object, context: object) -> None:
        raise sent

    async with echo_server(refuse) as (_, stub, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.EmbedTexts(embed_pb2.EmbedTextsRequest(texts=["a"]))
    received = from_rpc_error(caught.value)
    assert received.kind is Kind.NOT_FOUND
    assert received.message.rstrip("…") == letter * (len(received.message) - 1)
    assert len(received.message.encode()) > 900
