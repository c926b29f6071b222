import grpc
import pytest

from regionsearch.errors import Kind, RegionSearchError, from_rpc_error, invalid, overloaded, to_status


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
        (grpc.StatusCode.UNKNOWN, Kind.INTERNAL),
        (grpc.StatusCode.OUT_OF_RANGE, Kind.INVALID_ARGUMENT),
    ],
)
def test_a_bare_status_keeps_its_nearest_kind(code: grpc.StatusCode, kind: Kind) -> None:
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "from a proxy")
    assert from_rpc_error(error).kind is kind


def test_shorthands() -> None:
    assert invalid("query.text", "say something").field == "query.text"
    assert overloaded("full", 0.5).retry_after_s == 0.5
