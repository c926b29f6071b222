"""Which files an import takes, what they are called, and what becomes of those that cause trouble."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from regionsearch import AsyncClient, Client
from regionsearch.client import IngestResult
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.image_files import find_images
from tests.cli.conftest import run
from tests.client.conftest import url
from tests.client.fakes import FakeGateway
from tests.stack import ROOT

__all__ = ["url"]  # the fixture

LATIN = os.fsdecode(b"caf\xe9.jpg")
JPEG, HEIF = b"\xff\xd8\xff\xe0 a JPEG", b"\0\0\0\x18ftypheic\0\0\0\0"


def make(folder: Path, *names: str, data: bytes = JPEG) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data + os.fsencode(name))
    return folder


def found(*paths: Path | str) -> list[Path]:
    return list(find_images(paths).files)


def names(*paths: Path | str) -> list[str]:
    return [name for name, _ in find_images(paths).named()]


def test_images_are_found_once_in_folders_and_patterns(tmp_path: Path) -> None:
    make(tmp_path, "b.PNG", "deep/a.jpg")
    make(tmp_path, "notes.txt", data=b"words")
    deep, top = tmp_path / "deep" / "a.jpg", tmp_path / "b.PNG"
    assert found(tmp_path) == [top, deep]
    assert found(deep, tmp_path, str(tmp_path / "**" / "*")) == [deep, top]
    assert found(str(tmp_path / "*")) == [top, deep]  # as when a shell expands it
    assert found(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]  # named: the server judges
    for nothing in (tmp_path / "deep" / "nothing*", tmp_path / "nowhere"):
        with pytest.raises(RegionSearchError, match="neither a file nor a folder"):
            found(nothing)


def test_files_that_are_not_the_user_s_are_left_out_of_folders(tmp_path: Path) -> None:
    foreign = (
        "._a.jpg",
        ".t/b.jpg",
        "@eaDir/a.jpg/SYNO_THUMB_M.jpg",
        "__MACOSX/._d.jpg",
        "$RECYCLE.BIN/e.jpg",
    )
    make(tmp_path, "a.jpg", *foreign)
    selection = find_images([tmp_path])
    assert list(selection.files) == [tmp_path / "a.jpg"]
    assert selection.summary() == "5 left out: 3 of other programs, 2 hidden"
    assert found(str(tmp_path / "**" / "*.jpg")) == [tmp_path / "a.jpg"]
    assert found(tmp_path / "._a.jpg", tmp_path / ".t") == [tmp_path / "._a.jpg", tmp_path / ".t" / "b.jpg"]


def test_images_under_another_suffix_are_known_by_their_content(tmp_path: Path) -> None:
    make(tmp_path, "a.jfif", "b.mpo", "c.jpe", "d.HEIC", "noext", "IMG_1.data")
    make(tmp_path, "phone.bin", data=HEIF)
    make(tmp_path, "raw.nef", data=b"II*\0")
    make(tmp_path, "film.mov", data=b"\0\0\0\x18ftypqt  ")
    selection = find_images([tmp_path])
    assert [file.name for file in selection.files] == [
        "IMG_1.data", "a.jfif", "b.mpo", "c.jpe", "d.HEIC", "noext", "phone.bin",
    ]  # fmt: skip
    assert selection.summary() == "2 left out: 1 .mov, 1 .nef"


def test_special_files_are_skipped_and_counted(tmp_path: Path) -> None:
    folder, elsewhere = make(tmp_path / "a", "a.jpg"), make(tmp_path / "b", "b.jpg", "c.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (folder / "itself.jpg").symlink_to(folder / "itself.jpg")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "loop").symlink_to(folder)
    (folder / "by a link.jpg").symlink_to(elsewhere / "b.jpg")
    (folder / "folder.jpg").mkdir()
    make(folder, "folder.jpg/d.jpg")
    selection = find_images([folder])
    assert [file.name for file in selection.files] == ["a.jpg", "by a link.jpg", "d.jpg"]
    assert selection.summary() == "5 left out: 2 broken links, 2 linked folders, 1 special file"


def test_a_folder_of_anything_else_says_what_it_has(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "b.txt", ".c.jpg", data=b"words")
    with pytest.raises(RegionSearchError, match=r"there are no images; 3 left out: 2 \.txt, 1 hidden"):
        find_images([tmp_path])


def test_a_folder_that_cannot_be_read_is_a_failure(
    tmp_path: Path, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a.jpg", "closed/b.jpg")
    usual = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return usual(path)

    monkeypatch.setattr(os, "scandir", scandir)
    result = run(gateway, "ingest", tmp_path)
    assert result.exit_code == 1
    assert "1 added" in result.output
    assert f"failed: {tmp_path / 'closed'}: Permission denied" in result.output


def test_names_are_paths_below_the_folder_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "p/trip1/1.jpg", "p/trip2/1.jpg", "q/trip1/1.jpg", "p/0.jpg")
    p, q = tmp_path / "p", tmp_path / "q"
    assert names(p) == ["0.jpg", "trip1/1.jpg", "trip2/1.jpg"]
    assert names(p / "trip1") == ["1.jpg"]
    assert names(p / "trip1" / "1.jpg") == ["1.jpg"]
    assert names(p / "trip1", p / "trip2") == ["trip1/1.jpg", "trip2/1.jpg"]
    assert names(p / "trip1", q / "trip1") == ["p/trip1/1.jpg", "q/trip1/1.jpg"]
    assert names(p, q) == ["p/0.jpg", "p/trip1/1.jpg", "p/trip2/1.jpg", "q/trip1/1.jpg"]
    assert names(p / "0.jpg", p / "trip1" / "1.jpg") == ["0.jpg", "trip1/1.jpg"]
    assert names(str(p / "*" / "1.jpg")) == ["trip1/1.jpg", "trip2/1.jpg"]
    assert names(p / "trip1", p) == ["trip1/1.jpg", "0.jpg", "trip2/1.jpg"]
    monkeypatch.chdir(p / "trip1")
    assert names(".") == names("1.jpg") == names("*.jpg") == ["1.jpg"]
    assert names("..") == ["0.jpg", "trip1/1.jpg", "trip2/1.jpg"]


def test_names_are_sent_as_they_are(tmp_path: Path, gateway: FakeGateway) -> None:
    odd = ["S 9.00.00\u202fPM.jpg", "写真\u3000一.jpg", "می\u200cروم.jpg", "cafe\u0301.jpg", "👩\u200d👧.jpg"]
    make(tmp_path, *odd)
    with Client(gateway.grpc) as client:
        client.ingest(find_images([tmp_path]).named())
    assert sorted(request.name for request in gateway.requests if hasattr(request, "name")) == sorted(odd)


@pytest.fixture(params=["sync", "async"])
def ingest(request: pytest.FixtureRequest, url: str) -> Callable[[Sequence[Any]], list[IngestResult]]:
    """Adds images with each of the clients over each of the transports."""

    async def run(sources: Sequence[Any]) -> list[IngestResult]:
        async with AsyncClient(url) as client:
            return await client.ingest(sources, at_once=1)

    def ingest(sources: Sequence[Any]) -> list[IngestResult]:
        if request.param == "async":
            return asyncio.run(run(sources))
        with Client(url) as client:
            return client.ingest(sources, at_once=1)

    return ingest


def test_whatever_is_wrong_with_a_file_is_the_outcome_of_this_file(
    ingest: Callable[[Sequence[Any]], list[IngestResult]], tmp_path: Path
) -> None:
    make(tmp_path, LATIN, "good.jpg")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    with (tmp_path / "vast.jpg").open("wb") as vast:
        vast.truncate(10 << 30)  # which takes no room on the disk
    names = ("folder.jpg", "pipe.jpg", "vanished.jpg", "a\0b.jpg", "vast.jpg", LATIN + "x")
    troubled = [tmp_path / name for name in names]
    results = ingest([tmp_path / LATIN, *troubled, 42, ("half \ud800", b"1"), None, tmp_path / "good.jpg"])
    assert [result.outcome for result in results] == [
        "created", *["failed"] * 7, "created", "failed", "created",
    ]  # fmt: skip
    assert (results[0].name, results[8].name) == ("caf\ufffd.jpg", "half \ufffd")
    details = [result.error.detail for result in results if result.error]
    reasons = ["Is a directory", "not a regular file", "No such file", "null byte", "more than 1073741824"]
    for detail, reason in zip(details, [*reasons, "No such file", "42", "None"], strict=True):
        assert reason in detail
        detail.encode()


def test_one_image_that_takes_too_long_does_not_end_the_import(
    ingest: Callable[[Sequence[Any]], list[IngestResult]], gateway: FakeGateway
) -> None:
    gateway.failures = [RegionSearchError(Kind.DEADLINE_EXCEEDED, "it took too long")]
    first, second = ingest([b"one", b"two"])
    assert (first.outcome, second.outcome) == ("failed", "created")


def test_a_stream_takes_the_same_files(gateway: FakeGateway, tmp_path: Path) -> None:
    make(tmp_path, LATIN, "good.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    sources = [tmp_path / LATIN, tmp_path / "pipe.jpg", 42, tmp_path / "good.jpg"]
    with Client(gateway.grpc) as client:
        steps = list(client.ingest_stream(sources))  # type: ignore[arg-type]
    outcomes = {step.name: step.result.outcome for step in steps if step.result is not None}
    assert outcomes == {
        "caf\ufffd.jpg": "created", "pipe.jpg": "failed", "image": "failed", "good.jpg": "created",
    }  # fmt: skip


def test_the_command_prints_any_path_to_any_terminal(gateway: FakeGateway, tmp_path: Path) -> None:
    make(tmp_path, "good.jpg", "写真.jpg")
    make(tmp_path, LATIN, "noch\n eins [red].jpg", data=b"bad")
    command = [sys.executable, "-m", "regionsearch.cli", "ingest", str(tmp_path), "--url", gateway.http]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == 1, done.stderr.decode()
    assert b"2 added (2 regions), 0 already stored, 2 failed (2 UNSUPPORTED_IMAGE)" in done.stdout
    assert b"Traceback" not in done.stderr
    assert b"caf\\udce9.jpg is not an image" in done.stderr
    assert b"[red].jpg" in done.stderr


def test_what_is_left_out_of_a_folder_is_in_the_summary(gateway: FakeGateway, tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jfif", ".hidden.jpg")
    make(tmp_path, "film.mov", "film2.mov", data=b"film")
    result = run(gateway, "ingest", tmp_path)
    assert result.exit_code == 0
    assert "2 added (2 regions)" in result.output
    assert "3 left out: 2 .mov, 1 hidden" in result.output


def test_text_that_no_request_can_carry_is_refused_by_a_sentence(url: str) -> None:
    with Client(url) as client, pytest.raises(RegionSearchError, match="characters that UTF-8 has not"):
        client.search(LATIN)
