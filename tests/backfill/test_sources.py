"""What a backfill reads: folders, archives, shards, tables."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

pa = pytest.importorskip("pyarrow")

from backfill import sources  # noqa: E402
from backfill.outcomes import Outcomes  # noqa: E402
from backfill.rows import Row, from_table  # noqa: E402
from backfill.sources import Metadata  # noqa: E402
from regionsearch.errors import RegionSearchError  # noqa: E402
from regionsearch.v1 import region_search_pb2  # noqa: E402


def metadata_of(row: Row) -> tuple[str, list[str], dict[str, str]]:
    request = region_search_pb2.IngestImageRequest.FromString(row.request)
    return request.name, list(request.tags), dict(request.attributes)


NO_METADATA = Metadata()


def read(source: str, metadata: Metadata = NO_METADATA) -> list[Row]:
    found = sources.find_files(source)
    table = sources.as_table([*found.images, *found.shards])
    return collect(sources.read_files(table, found.url, metadata))


def collect(tables: Iterable[Any]) -> list[Row]:
    return [row for table in tables for row in from_table(table)]


def test_a_folder_and_a_zip_file_give_the_same_images(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "a" / ".hidden").mkdir(parents=True)
    for name in ("one.jpg", "a/two.PNG", "a/.hidden/no.jpg", "notes.txt"):
        (folder / name).write_bytes(name.encode())
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in folder.rglob("*"):
            archive.write(path, path.relative_to(folder))
    for source in (str(folder), str(tmp_path / "images.zip"), f"file://{folder}"):
        rows = read(source, Metadata(tags=("all",)))
        assert {metadata_of(row)[0]: row.data for row in rows} == {
            "one.jpg": b"one.jpg",
            "a/two.PNG": b"a/two.PNG",
        }
        assert all(metadata_of(row)[1] == ["all"] for row in rows)
        assert sources.find_files(source).skipped == {"hidden": 1, ".txt": 1}


def test_shards_give_images_with_their_captions_and_what_is_damaged_fails_alone(tmp_path: Path) -> None:
    members = {
        "x/1.jpg": b"first", "x/1.json": json.dumps({"tags": ["t"], "score": 0.5, "deep": {}}).encode(),
        "x/1.txt": b"a caption\n", "x/2.png": b"second", "x/2.json": b"{", "x/3.txt": b"no image",
        "x/4.webp": b"fourth",
    }  # fmt: skip
    with tarfile.open(tmp_path / "000.tar", "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (tmp_path / "001.tar").write_bytes(b"damaged")
    rows = {row.source.rpartition("/")[2]: row for row in read(f"{tmp_path}/*.tar")}
    assert {name: (row.data, row.code) for name, row in rows.items()} == {
        "1.jpg": (b"first", ""),
        "2.png": (b"", "DATA_LOSS"),
        "4.webp": (b"fourth", ""),
        "001.tar": (b"", "DATA_LOSS"),
    }
    assert metadata_of(rows["1.jpg"]) == ("x/1.jpg", ["t"], {"score": "0.5", "caption": "a caption"})


def test_columns_of_a_table_become_tags_and_attributes() -> None:
    table = pa.table(
        {
            "picture": [{"bytes": b"1", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}],
            "tags": [["red", "round"], None],
            "good": [True, None],
            "year": [1999, 2000],
        }
    )
    first, second = collect(sources.read_table(table, "t", Metadata(tags=("all",))))
    assert metadata_of(first) == ("a.jpg", ["all", "red", "round"], {"good": "true", "year": "1999"})
    assert (first.data, second.code) == (b"1", "DATA_LOSS")
    (only, _) = collect(sources.read_table(table, "t", Metadata(attributes=("year",))))
    assert metadata_of(only)[2] == {"year": "1999"}
    with pytest.raises(RegionSearchError, match="no column 'nothing'"):
        collect(sources.read_table(table, "t", Metadata(image="nothing")))


@pytest.mark.parametrize("source", ["/does/not/exist", "nosuch://bucket/x"])
def test_a_source_without_images_is_refused(source: str) -> None:
    with pytest.raises(RegionSearchError, match=r"holds no images|cannot be opened"):
        sources.find_files(source)


def test_outcomes_are_parquet_files_of_one_folder(tmp_path: Path) -> None:
    for run in range(2):
        log = Outcomes(str(tmp_path / "log"))
        codes = ["", "TOO_LARGE"]
        log.add(
            pa.table(
                {"source": ["a", "b"], "outcome": ["created", "failed"], "code": codes, "regions": [3, 0]}
            )
        )
        log.write()
        log.write()
        assert (log.counts["created"], log.reasons["TOO_LARGE"], log.regions) == (1, 1, 3)
        assert len(list((tmp_path / "log").iterdir())) == run + 1
    assert pa.parquet.read_table(tmp_path / "log").num_rows == 4
