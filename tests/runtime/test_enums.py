"""Numbers that are not values of an enum, wherever in a message they stand."""

from __future__ import annotations

from typing import Any

import pytest

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.v1 import embed_pb2, search_pb2, segment_pb2, types_pb2
from services.runtime.requests import check_enums


def unknown() -> Any:
    return 99


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (embed_pb2.EmbedRegionsRequest(crop_policy=unknown()), "crop_policy"),
        (embed_pb2.EmbedTextsRequest(templates=unknown()), "templates"),
        (search_pb2.SearchRequest(query_mode=unknown()), "query_mode"),
        (search_pb2.SearchRequest(group_by=unknown()), "group_by"),
        (
            search_pb2.UpsertRequest(records=[search_pb2.Record(), search_pb2.Record(level=unknown())]),
            "records[1].level",
        ),
        (
            search_pb2.UpsertRequest(vectors=types_pb2.Tensor(dtype=unknown())),
            "vectors.dtype",
        ),
        (
            search_pb2.CreateCollectionRequest(model=types_pb2.ModelInfo(crop_policy=unknown())),
            "model.crop_policy",
        ),
        (
            segment_pb2.SegmentRequest(output=segment_pb2.OutputOptions(mask_encoding=unknown())),
            "output.mask_encoding",
        ),
    ],
)
def test_an_unknown_enum_value_is_refused_by_its_path(message: Any, field: str) -> None:
    with pytest.raises(RegionSearchError) as caught:
        check_enums(message)
    assert (caught.value.kind, caught.value.field) == (Kind.INVALID_ARGUMENT, field)
    assert "send one of" in caught.value.message


def test_known_and_absent_enum_values_pass() -> None:
    check_enums(search_pb2.SearchRequest(level=search_pb2.LEVEL_REGION, page_size=3))
    check_enums(segment_pb2.SegmentRequest(priority=types_pb2.PRIORITY_BULK))
