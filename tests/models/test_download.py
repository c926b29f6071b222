"""Weights from a server on this machine: what arrives is whole and right, or is not there."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.models.download import pull
from tests.models.conftest import Publisher


def files(folder: Path) -> set[str]:
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    return found - {".lock"}


def interrupt(publisher: Publisher, after: int, sha256: str | None = None) -> None:
    publisher.drop_after = after
    with pytest.raises(RegionSearchError) as caught:
        pull(publisher.weights(sha256))
    assert caught.value.kind is Kind.UNAVAILABLE
    assert "again" in caught.value.message


def test_a_download_appears_whole_with_its_digest_beside_it(publisher: Publisher, models: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = pull(publisher.weights(publisher.digest), lambda done, total: seen.append((done, total)))
    assert path == models / "weights.bin"
    assert path.read_bytes() == publisher.data
    assert files(models) == {"weights.bin", "weights.bin.sha256"}
    assert (models / "weights.bin.sha256").read_text() == f"{publisher.digest}  weights.bin\n"
    assert seen[0] == (0, len(publisher.data))
    assert seen[-1] == (len(publisher.data), len(publisher.data))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_what_is_there_is_not_downloaded_again(publisher: Publisher, models: Path) -> None:
    pull(publisher.weights(publisher.digest))
    pull(publisher.weights(publisher.digest))
    assert len(publisher.requests) == 1


def test_an_interrupted_download_goes_on_where_it_stopped(publisher: Publisher, models: Path) -> None:
    interrupt(publisher, 3_000_000, publisher.digest)
    assert "weights.bin" not in files(models)
    there = (models / "weights.bin.partial").stat().st_size
    assert there > 0
    assert pull(publisher.weights(publisher.digest)).read_bytes() == publisher.data
    assert publisher.requests[-1]["range"] == f"bytes={there}-"
    assert files(models) == {"weights.bin", "weights.bin.sha256"}


@pytest.mark.parametrize("change", ["new version", "no ranges", "no tag"])
def test_a_part_of_another_version_is_not_continued(publisher: Publisher, models: Path, change: str) -> None:
    if change == "no tag":
        publisher.etag = None
    interrupt(publisher, 3_000_000)
    if change == "new version":
        publisher.data, publisher.etag = publisher.data[::-1], '"two"'
    publisher.ranges = change != "no ranges"
    assert pull(publisher.weights()).read_bytes() == publisher.data


def test_a_part_that_begins_elsewhere_is_not_joined(publisher: Publisher, models: Path) -> None:
    interrupt(publisher, 3_000_000)
    publisher.shift = 1
    with pytest.raises(RegionSearchError, match="another part") as caught:
        pull(publisher.weights())
    assert caught.value.kind is Kind.UNAVAILABLE
    publisher.shift = 0
    assert pull(publisher.weights()).read_bytes() == publisher.data


def test_pulls_of_several_processes_take_turns(publisher: Publisher, models: Path) -> None:
    """One downloads; the others wait, and find it there. Threads lock a file as processes do."""
    weights = publisher.weights(publisher.digest)
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: pull(weights), range(4)))
    assert {path.read_bytes() == publisher.data for path in paths} == {True}
    assert len(publisher.requests) == 1


def test_a_complete_part_is_only_checked(publisher: Publisher, models: Path) -> None:
    models.mkdir()
    (models / "weights.bin.partial").write_bytes(publisher.data)
    (models / "weights.bin.version").write_text('"one"')
    assert pull(publisher.weights(publisher.digest)).read_bytes() == publisher.data


def test_what_is_not_what_was_published_is_thrown_away(publisher: Publisher, models: Path) -> None:
    with pytest.raises(RegionSearchError) as caught:
        pull(publisher.weights("0" * 64))
    assert caught.value.kind is Kind.DATA_LOSS
    assert not {"weights.bin", "weights.bin.partial"} & files(models)


@pytest.mark.parametrize("right", [True, False])
def test_a_hub_announces_the_digest(publisher: Publisher, models: Path, right: bool) -> None:
    publisher.announce = publisher.digest if right else "0" * 64
    weights = publisher.weights(path="/hub/weights.bin")
    if right:
        assert pull(weights).read_bytes() == publisher.data
        return
    with pytest.raises(RegionSearchError) as caught:
        pull(weights)
    assert caught.value.kind is Kind.DATA_LOSS


def test_a_mirror_takes_the_publishers_place(
    publisher: Publisher, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGIONSEARCH_MODELS_MIRROR", f"{publisher.url}/")
    weights = publisher.weights(publisher.digest)
    elsewhere = type(weights)(weights.model, weights.file, "http://127.0.0.1:9/x", weights.sha256, "MIT")
    assert pull(elsewhere).read_bytes() == publisher.data


@pytest.mark.parametrize("status", [404, 503])
def test_a_refusal_names_the_address(publisher: Publisher, models: Path, status: int) -> None:
    publisher.status = status
    with pytest.raises(RegionSearchError, match=f"{publisher.url}.*{status}") as caught:
        pull(publisher.weights())
    assert caught.value.kind is Kind.UNAVAILABLE


def test_no_server_is_unavailable(models: Path, publisher: Publisher) -> None:
    weights = publisher.weights()
    gone = type(weights)("m", "m.bin", "http://127.0.0.1:9/m.bin", None, "MIT")
    with pytest.raises(RegionSearchError) as caught:
        pull(gone)
    assert caught.value.kind is Kind.UNAVAILABLE


def test_no_room_is_said_before_anything_is_written(
    publisher: Publisher, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = os.statvfs_result((1, 1, 0, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: free)
    with pytest.raises(RegionSearchError, match="REGIONSEARCH_MODELS_DIR") as caught:
        pull(publisher.weights())
    assert caught.value.kind is Kind.STORAGE_FULL
    assert "weights.bin.partial" not in files(models)


def test_a_disk_that_fills_up_meanwhile_is_said(publisher: Publisher, models: Path) -> None:
    models.mkdir()
    (models / "weights.bin.partial").symlink_to("/dev/full")
    with pytest.raises(RegionSearchError, match=r"make room.*REGIONSEARCH_MODELS_DIR") as caught:
        pull(publisher.weights(publisher.digest))
    assert caught.value.kind is Kind.STORAGE_FULL
    assert "weights.bin" not in files(models)


@pytest.mark.parametrize("mirror", ["http://[::1", "mirror.example", "file:///weights"])
def test_a_mirror_that_is_no_address_is_named(
    publisher: Publisher, models: Path, monkeypatch: pytest.MonkeyPatch, mirror: str
) -> None:
    monkeypatch.setenv("REGIONSEARCH_MODELS_MIRROR", mirror)
    with pytest.raises(RegionSearchError, match=re.escape(mirror)) as caught:
        pull(publisher.weights())
    assert caught.value.kind is Kind.UNAVAILABLE


def test_a_folder_that_cannot_be_made_is_named(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("REGIONSEARCH_MODELS_DIR", str(tmp_path / "file" / "models"))
    with pytest.raises(RegionSearchError, match="file") as caught:
        pull(publisher.weights())
    assert caught.value.kind is Kind.FAILED_PRECONDITION
