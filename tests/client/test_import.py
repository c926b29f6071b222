"""Importing files that are known already, and changing what is said about images, with both clients."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from regionsearch import AsyncClient, Client
from regionsearch.client import EverythingOptions
from regionsearch.client.operations import queries
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.v1 import segment_pb2
from tests.client.fakes import FakeGateway


def files(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).write_bytes(name.encode())
    return [folder / name for name in names]


def sent(gateway: FakeGateway) -> list[str]:
    """What was asked: the last part of a path, or the name of a message."""
    return [
        asked[1].split("/")[-1] if isinstance(asked, tuple) else type(asked).__name__
        for asked in gateway.requests
    ]


def test_files_are_asked_about_before_they_are_sent(
    use: Callable[..., Any], gateway: FakeGateway, tmp_path: Path
) -> None:
    first = files(tmp_path, "a", "b", "c")
    assert [one.outcome for one in use("ingest", first, at_once=1)] == ["created"] * 3
    gateway.requests.clear()
    paths = [*files(tmp_path, "a", "new", "b"), ("other name", tmp_path / "c")]
    results = use("ingest", paths, at_once=2)
    assert [(one.name, one.outcome) for one in results] == [
        ("a", "duplicate"), ("new", "created"), ("b", "duplicate"), ("other name", "duplicate"),
    ]  # fmt: skip
    assert [one.known_as for one in results] == ["k", None, "k", "k"]
    assert [one.image_id for one in results] == [
        hashlib.sha256(name.encode()).hexdigest() for name in ("a", "new", "b", "c")
    ]
    assert len(gateway.requests) == 2  # one question about all, one file


def test_known_files_get_the_tags_of_the_import(
    use: Callable[..., Any], gateway: FakeGateway, tmp_path: Path
) -> None:
    paths = files(tmp_path, "a", "b")
    use("ingest", paths)
    results = use("ingest", paths, tags=["t", "u"])
    assert [one.tags for one in results] == [("t", "u")] * 2
    assert [one.added_tags for one in results] == [("t", "u")] * 2
    assert [one.seq for one in results] == [9, 9]
    again = use("ingest", paths, tags=["t", "u"])
    assert [(one.tags, one.added_tags) for one in again] == [(("t", "u"), ())] * 2
    assert all(gateway.tags[one.image_id] == ["t", "u"] for one in results)


def test_known_files_can_be_sent_all_the_same(
    use: Callable[..., Any], gateway: FakeGateway, tmp_path: Path
) -> None:
    paths = files(tmp_path, "a", "b")
    use("ingest", paths)
    gateway.requests.clear()
    assert [one.outcome for one in use("ingest", paths, resend=True)] == ["duplicate"] * 2
    assert set(sent(gateway)) <= {"images", "IngestImageRequest"}


def test_a_file_whose_image_was_deleted_after_the_check_is_sent(
    use: Callable[..., Any], gateway: FakeGateway, tmp_path: Path
) -> None:
    (path,) = files(tmp_path, "a")
    use("ingest", [path])
    gateway.failures = [None, RegionSearchError(Kind.NOT_FOUND, "there is no image")]
    (result,) = use("ingest", [path], tags=["t"])
    assert sent(gateway)[-1] in ("images", "IngestImageRequest")
    assert result.image_id == hashlib.sha256(b"a").hexdigest()


@pytest.mark.parametrize("kind", [Kind.NOT_FOUND, Kind.UNIMPLEMENTED])
def test_a_gateway_that_does_not_know_the_question_is_sent_all(
    use: Callable[..., Any], gateway: FakeGateway, tmp_path: Path, kind: Kind
) -> None:
    gateway.failures = [RegionSearchError(kind, "what is that?")]
    assert [one.outcome for one in use("ingest", files(tmp_path, "a", "b"))] == ["created"] * 2


def test_a_generator_of_files_is_not_waited_for(url: str, gateway: FakeGateway, tmp_path: Path) -> None:
    """A camera's files come one by one: each is added before the next one is asked for."""
    paths, done = files(tmp_path, "a", "b", "c"), []

    def slowly() -> Iterator[Path]:
        for number, path in enumerate(paths):
            assert len(done) >= number - 1
            yield path

    with Client(url) as client:
        client.ingest(slowly(), at_once=1, on_result=done.append)

    async def run() -> None:
        done.clear()
        async with AsyncClient(url) as client:
            await client.ingest(slowly(), at_once=1, on_result=done.append)

    asyncio.run(run())
    assert len(done) == 3


def test_changing_an_image(use: Callable[..., Any], gateway: FakeGateway) -> None:
    identity = "a" * 64
    gateway.known = {identity}
    changed = use(
        "update_image", identity, "things", name="n", tags=[], add_tags=["t"], remove_tags=["u"],
        attributes={"set": "1", "gone": None},
    )  # fmt: skip
    assert (changed.image_id, changed.tags, changed.seq) == (identity, ("t",), 9)
    asked = gateway.requests[-1]
    if isinstance(asked, tuple):
        assert asked[:2] == ("PATCH", f"/v1/collections/things/images/{identity}")
        assert asked[2] == {
            "name": "n", "tags": [], "add_tags": ["t"], "remove_tags": ["u"],
            "attributes": {"set": "1", "gone": None},
        }  # fmt: skip
    else:
        update = asked.update
        assert (asked.collection, update.image_id, update.name) == ("things", identity, "n")
        assert update.HasField("tags")
        assert (list(update.add_tags), list(update.remove_tags)) == (["t"], ["u"])
        assert (dict(update.set_attributes), list(update.remove_attributes)) == ({"set": "1"}, ["gone"])
    use("update_image", identity, add_tags=["t"])
    asked = gateway.requests[-1]
    if isinstance(asked, tuple):
        assert "name" not in asked[2]
        assert "tags" not in asked[2]
    else:
        assert not asked.update.HasField("name")
        assert not asked.update.HasField("tags")
    with pytest.raises(RegionSearchError) as caught:
        use("update_image", "b" * 64, add_tags=["t"])
    assert caught.value.kind in (Kind.NOT_FOUND, Kind.INVALID_ARGUMENT)


def test_a_search_reports_which_phrases_were_truncated(use: Callable[..., Any], gateway: FakeGateway) -> None:
    assert use("search", "mug").truncated == ()
    gateway.truncated = [True, False]
    phrases: Sequence[str] = ["mug " * 200, "mug"]
    assert use("search", phrases).truncated == (True, False)
    assert use("within", phrases, image=b"image").truncated == (True, False)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stream_asks_about_files_too(gateway: FakeGateway, tmp_path: Path, asynchronous: bool) -> None:
    def stream(*sources: Any, **options: Any) -> list[tuple[str, str, tuple[str, ...]]]:
        async def run() -> list[Any]:
            async with AsyncClient(gateway.grpc) as client:
                return [step async for step in client.ingest_stream(sources, **options)]

        if asynchronous:
            steps = asyncio.run(run())
        else:
            with Client(gateway.grpc) as client:
                steps = list(client.ingest_stream(sources, **options))
        results = [step.result for step in steps if step.result is not None]
        return sorted((one.name, one.outcome, one.added_tags) for one in results)

    a, b = files(tmp_path, "a", "b")
    assert stream(a) == [("a", "created", ())]
    gateway.requests.clear()
    assert stream(a, b, tags=["t"]) == [("a", "duplicate", ("t",)), ("b", "created", ())]
    assert sent(gateway) == ["CheckImagesRequest", "UpdateImageRequest", "IngestImagesRequest"]
    gateway.requests.clear()
    assert stream(a, b) == [("a", "duplicate", ()), ("b", "duplicate", ())]
    assert sent(gateway) == ["CheckImagesRequest"]
    gateway.requests.clear()
    assert stream(a, b, resend=True) == [("a", "duplicate", ()), ("b", "duplicate", ())]
    assert sent(gateway) == ["IngestImagesRequest"] * 2
    gateway.failures = [RegionSearchError(Kind.PERMISSION_DENIED, "no questions")]
    assert stream(a) == [("a", "duplicate", ())]


def test_a_single_image_needs_no_list(use: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(b"cat")
    for single in (str(path), b"cat", path):
        (result,) = use("ingest", single)
        assert result.outcome in ("created", "duplicate")


def test_options_of_everything_mode_are_sent_along(
    use: Callable[..., Any], gateway: FakeGateway, url: str, tmp_path: Path
) -> None:
    options = EverythingOptions(mode="proposals", min_mask_region_area=30, max_regions=5)
    use("ingest", files(tmp_path, "a"), everything=options)
    if url.startswith("grpc"):
        [sent] = [asked.everything for asked in gateway.requests if hasattr(asked, "everything")]
        assert sent == options.to_proto()
        assert (sent.mode, sent.selection.max_regions) == (segment_pb2.EVERYTHING_MODE_PROPOSALS, 5)
        return
    assert gateway.everything == [{"mode": "proposals", "min_mask_region_area": 30, "max_regions": 5}]


def test_everything_in_an_image_is_looked_for_as_asked() -> None:
    asked = queries.segment(image=b"image", everything=EverythingOptions(points_per_side=8)).request()
    assert asked.body is not None
    assert json.loads(asked.body.to_json())["everything"] == {"points_per_side": 8}
    with pytest.raises(RegionSearchError, match="say what to segment"):
        queries.segment(image=b"image", points=[(1, 2)], everything=EverythingOptions()).request()
