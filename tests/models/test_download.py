"""Weights from a server on this machine: what arrives is whole and right, or is not there."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.models import download
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


def test_a_download_appears_whole_with_its_digest_next_to_it(publisher: Publisher, models: Path) -> None:
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


@pytest.mark.parametrize(
    ("status", "kind", "advice"),
    [
        (401, Kind.UNAUTHENTICATED, "HF_TOKEN"),
        (403, Kind.PERMISSION_DENIED, "licence"),
        (404, Kind.NOT_FOUND, "HF_ENDPOINT"),
        (429, Kind.UNAVAILABLE, "too many requests"),
        (503, Kind.UNAVAILABLE, "try again later"),
    ],
)
def test_a_refusal_names_the_address_and_the_remedy(
    publisher: Publisher, models: Path, status: int, kind: Kind, advice: str
) -> None:
    publisher.status = status
    with pytest.raises(RegionSearchError, match=f"{publisher.url}.*{status}.*{advice}") as caught:
        pull(publisher.weights())
    assert caught.value.kind is kind


@pytest.fixture
def waits(models: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What passes is tried again; the times that would be waited for."""
    waits: list[float] = []
    monkeypatch.setattr(download, "ATTEMPTS", 3)
    monkeypatch.setattr(download.time, "sleep", waits.append)
    return waits


def test_what_passes_is_tried_again(publisher: Publisher, waits: list[float]) -> None:
    publisher.status, publisher.refusals = 503, 2
    assert pull(publisher.weights(publisher.digest)).read_bytes() == publisher.data
    assert waits == [1, 2]


def test_a_busy_server_says_how_long_to_wait(publisher: Publisher, waits: list[float]) -> None:
    publisher.status, publisher.refusals, publisher.headers = 429, 1, {"Retry-After": "7"}
    assert pull(publisher.weights(publisher.digest)).read_bytes() == publisher.data
    assert waits == [7]


@pytest.mark.parametrize("status", [401, 404])
def test_what_does_not_pass_is_not_tried_again(publisher: Publisher, waits: list[float], status: int) -> None:
    publisher.status = status
    with pytest.raises(RegionSearchError):
        pull(publisher.weights())
    assert len(publisher.requests) == 1


def test_without_an_entity_tag_a_known_digest_lets_a_download_go_on(
    publisher: Publisher, waits: list[float]
) -> None:
    publisher.etag, publisher.drop_after = None, 3_000_000
    assert pull(publisher.weights(publisher.digest)).read_bytes() == publisher.data
    assert publisher.requests[-1]["range"].startswith("bytes=")
    assert len(publisher.requests) == 2


def test_a_page_is_not_taken_for_weights(publisher: Publisher, models: Path) -> None:
    publisher.headers = {"Content-Type": "text/html; charset=utf-8"}
    with pytest.raises(RegionSearchError, match="a page instead of a file"):
        pull(publisher.weights())
    assert not files(models)


def test_a_file_of_another_size_is_refused_before_it_comes(publisher: Publisher, models: Path) -> None:
    with pytest.raises(RegionSearchError, match="another file") as caught:
        pull(replace(publisher.weights(), size=17))
    assert caught.value.kind is Kind.DATA_LOSS
    assert not {"weights.bin", "weights.bin.partial"} & files(models)


def test_the_token_goes_to_the_hub_only(
    publisher: Publisher, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to the storage that the hub sends us to, and not to other publishers."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    publisher.redirect = publisher.url.replace("127.0.0.1", "localhost") + "/weights.bin"
    hub = replace(publisher.weights(), url="https://huggingface.co/hub/weights.bin")
    monkeypatch.setenv("HF_ENDPOINT", publisher.url)
    pull(hub)
    assert [request.get("authorization") for request in publisher.requests] == ["Bearer hf_secret", None]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    pull(replace(publisher.weights(), file="other.bin"))
    assert "authorization" not in publisher.requests[-1]


def test_weights_in_a_cache_are_used_in_place(publisher: Publisher, models: Path, tmp_path: Path) -> None:
    cached = tmp_path / "HF_HUB_CACHE" / "models--laion--clip" / "snapshots" / "abc" / "w.safetensors"
    plain = tmp_path / "TORCH_HOME" / "hub" / "checkpoints" / "weights.bin"
    for path in (cached, plain):
        path.parent.mkdir(parents=True)
        path.write_bytes(publisher.data)
    weights = publisher.weights(publisher.digest)
    hub = replace(weights, url="https://huggingface.co/laion/clip/resolve/main/w.safetensors")
    assert (pull(hub), pull(weights)) == (cached, plain)
    assert not publisher.requests
    plain.write_bytes(b"cut off")
    with pytest.raises(RegionSearchError, match="damaged"):
        pull(weights)


def test_weights_that_are_published_in_another_file_come_from_there(
    publisher: Publisher, models: Path
) -> None:
    pickled = replace(publisher.weights(), url=f"{publisher.url}/hub/weights.bin")
    publisher.status, publisher.refusals = 404, 1
    safe = replace(pickled, file="weights.safetensors", fallback=pickled)
    assert pull(safe) == models / "weights.bin"


def test_a_proxy_that_httpx_cannot_use_is_named(
    publisher: Publisher, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed.")

    monkeypatch.setattr(download.httpx, "Client", refuse)
    with pytest.raises(RegionSearchError, match=re.escape("pip install 'httpx[socks]'")) as caught:
        pull(publisher.weights())
    assert caught.value.kind is Kind.FAILED_PRECONDITION


def test_no_server_is_unavailable(models: Path, publisher: Publisher) -> None:
    weights = publisher.weights()
    gone = type(weights)("m", "m.bin", "http://127.0.0.1:9/m.bin", None, "MIT")
    with pytest.raises(RegionSearchError) as caught:
        pull(gone)
    assert caught.value.kind is Kind.UNAVAILABLE


def test_too_little_disk_space_is_reported_before_anything_is_written(
    publisher: Publisher, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = os.statvfs_result((1, 1, 0, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: free)
    with pytest.raises(RegionSearchError, match="REGIONSEARCH_MODELS_DIR") as caught:
        pull(publisher.weights())
    assert caught.value.kind is Kind.STORAGE_FULL
    assert "weights.bin.partial" not in files(models)


def test_a_disk_that_fills_up_during_an_upload_is_reported(publisher: Publisher, models: Path) -> None:
    models.mkdir()
    (models / "weights.bin.partial").symlink_to("/dev/full")
    with pytest.raises(RegionSearchError, match=r"make room.*REGIONSEARCH_MODELS_DIR") as caught:
        pull(publisher.weights(publisher.digest))
    assert caught.value.kind is Kind.STORAGE_FULL
    assert "weights.bin" not in files(models)


@pytest.mark.parametrize("mirror", ["http://[::1", "mirror.example", "file:///weights"])
def test_a_mirror_that_is_not_a_url_is_named(
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
