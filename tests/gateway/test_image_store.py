"""The image store: atomic, durable, content addressed, and deaf to tricks in names."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import image_store
from gateway.image_store import ImageStore
from regionsearch.errors import Kind, RegionSearchError

DATA = b"some bytes"
ID = hashlib.sha256(DATA).hexdigest()


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ImageStore:
    return ImageStore(str(tmp_path / "images") if request.param == "local" else f"memory://{tmp_path.name}")


async def test_an_image_is_stored_read_and_deleted(store: ImageStore) -> None:
    assert not await store.exists("default", ID)
    await store.put("default", ID, DATA)
    await store.put("default", ID, DATA)
    assert await store.get("default", ID) == DATA
    assert not await store.exists("other", ID)
    await store.put("other", ID, DATA)
    for _ in range(2):
        await store.quarantine("default", ID, 0)
        await store.purge("default", ID)
    assert not await store.exists("default", ID)
    assert await store.get("other", ID) == DATA
    for _ in range(2):
        await store.quarantine("other", ID, 0)
        await store.purge("other", ID)
        await store.tidy("other")
    with pytest.raises(RegionSearchError) as caught:
        await store.get("other", ID)
    assert caught.value.kind is Kind.NOT_FOUND


@given(
    st.one_of(
        st.text(max_size=80), st.sampled_from(["../" + "a" * 61, "A" * 64, "a" * 63 + "\n", "a" * 65, ""])
    )
)
def test_invalid_ids_change_nothing(tmp_path_factory: pytest.TempPathFactory, image_id: str) -> None:
    import asyncio

    folder = tmp_path_factory.getbasetemp() / "untouched"
    store = ImageStore(str(folder))
    with pytest.raises(RegionSearchError) as caught:
        asyncio.run(store.put("default", image_id, DATA))
    assert caught.value.kind is Kind.NOT_FOUND
    assert not folder.exists()


@pytest.mark.parametrize("collection", ["", "..", "a/b", "/etc", "A", "x" * 65, "a\n"])
async def test_invalid_collection_names(store: ImageStore, collection: str) -> None:
    with pytest.raises(RegionSearchError) as caught:
        await store.put(collection, ID, DATA)
    assert caught.value.kind is Kind.INVALID_ARGUMENT
    with pytest.raises(RegionSearchError):
        await store.tidy(collection)


async def test_damaged_bytes_are_noticed(tmp_path: Path) -> None:
    store = ImageStore(str(tmp_path))
    await store.put("default", ID, DATA)
    (tmp_path / "default" / ID[:2] / ID).write_bytes(DATA[:-1])
    with pytest.raises(RegionSearchError) as caught:
        await store.get("default", ID)
    assert caught.value.kind is Kind.DATA_LOSS


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, Kind.STORAGE_FULL), (errno.EIO, Kind.UNAVAILABLE)]
)
async def test_a_disk_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: Kind
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(number, "broken")

    store = ImageStore(str(tmp_path))
    monkeypatch.setattr(image_store.os, "fsync", broken)
    with pytest.raises(RegionSearchError) as caught:
        await store.put("default", ID, DATA)
    assert caught.value.kind is kind
    monkeypatch.undo()
    assert not await store.exists("default", ID)
    assert not files_in(tmp_path)


def test_a_killed_writer_leaves_no_half_image(tmp_path: Path) -> None:
    """A process that dies while it writes large images; what appears under its key is complete."""
    program = """
import asyncio, hashlib, sys
from gateway.image_store import ImageStore
store = ImageStore(sys.argv[1])
for number in range(10_000):
    data = number.to_bytes(4, "big") * 500_000
    asyncio.run(store.put("default", hashlib.sha256(data).hexdigest(), data))
    print(number, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    acknowledged = [process.stdout.readline() for _ in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    written = [path for path in files_in(tmp_path) if not path.name.startswith(".")]
    assert len(written) >= len(acknowledged)
    for path in written:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


async def test_a_first_image_is_synchronised_with_all_of_its_new_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    await ImageStore(str(tmp_path)).put("fresh", ID, DATA)
    assert synced[1:] == [tmp_path / "fresh" / ID[:2], tmp_path / "fresh", tmp_path]


async def test_empty_folders_go_while_others_write_into_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ImageStore(str(tmp_path))
    await store.put("busy", ID, DATA)
    await store.tidy("busy")
    assert await store.get("busy", ID) == DATA
    await store.quarantine("busy", ID, 0)
    await store.purge("busy", ID)
    mkstemp, tidied = tempfile.mkstemp, []

    def just_after_tidying(**options: object) -> tuple[int, str]:
        if not tidied:
            tidied.append(True)
            store._tidy(str(tmp_path / "busy"))
            assert not (tmp_path / "busy").exists()
        return mkstemp(**options)

    monkeypatch.setattr(tempfile, "mkstemp", just_after_tidying)
    await store.put("busy", ID, DATA)
    assert await store.get("busy", ID) == DATA


async def test_a_restored_file_does_not_replace_a_newer_one(store: ImageStore) -> None:
    await store.put("default", ID, DATA)
    await store.quarantine("default", ID, 0)
    await asyncio.to_thread(store._fs.pipe_file, image_store._aside(store._path("default", ID)), b"damaged")
    await store.put("default", ID, DATA)
    await store.restore("default", ID)
    assert await store.get("default", ID) == DATA
    (partition,) = [partition async for partition in store.partitions("default")]
    assert (partition.images, partition.aside) == ([ID], [])
