"""Images and outcomes in an object store, which moto's server stands in for."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest

pa = pytest.importorskip("pyarrow")
pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")

from backfill import sources  # noqa: E402
from backfill.outcomes import Outcomes  # noqa: E402
from backfill.sources import Metadata  # noqa: E402
from regionsearch.errors import RegionSearchError  # noqa: E402
from tests.backfill.test_sources import metadata_of, read  # noqa: E402


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """An empty bucket, `s3://bucket`, as fsspec's file system."""
    server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fs = fsspec.filesystem("s3")
        fs.mkdir("bucket")
        yield fs
        fs.clear_instance_cache()  # its server ends
    server.stop()


def test_images_and_shards_of_a_bucket_are_read(bucket: Any) -> None:
    bucket.pipe({"bucket/a/one.jpg": b"first", "bucket/a/b/two.png": b"second", "bucket/a/notes.md": b"-"})
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for name, data in (("3.jpg", b"third"), ("3.json", json.dumps({"tags": "t", "n": 3}).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    bucket.pipe("bucket/a/000.tar", shard.getvalue())

    rows = read("s3://bucket/a", Metadata(tags=("all",)))
    assert {row.data: metadata_of(row) for row in rows} == {
        b"first": ("one.jpg", ["all"], {}),
        b"second": ("b/two.png", ["all"], {}),
        b"third": ("3.jpg", ["all", "t"], {"n": "3"}),
    }
    with pytest.raises(RegionSearchError, match="holds no images"):
        sources.find_files("s3://bucket/nothing")


def test_outcomes_go_to_a_bucket(bucket: Any) -> None:
    log = Outcomes("s3://bucket/outcomes")
    log.add(pa.table({"source": ["a"], "outcome": ["created"], "code": [""], "regions": [3]}))
    log.write()
    (file,) = bucket.ls("bucket/outcomes", refresh=True)
    with bucket.open(file) as opened:
        assert pa.parquet.read_table(opened).num_rows == 1
