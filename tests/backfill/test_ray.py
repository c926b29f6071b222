"""The command on a local Ray, with every kind of source."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import grpc
import httpx
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from regionsearch.v1 import search_pb2, search_pb2_grpc, types_pb2  # noqa: E402
from tests.backfill.commands import WITH_RAY, command  # noqa: E402
from tests.backfill.images import drawn  # noqa: E402
from tests.stack import Stack  # noqa: E402

pytestmark = [pytest.mark.slow, WITH_RAY]

IMAGES = {f"image-{number}.png": drawn(number) for number in range(3)}


def table() -> pa.Table:
    """Images with metadata, and a row without an image."""
    return pa.table(
        {
            "image": [*IMAGES.values(), None],
            "name": [*IMAGES, "nothing"],
            "tags": [["drawn"]] * 4,
            "year": [2026] * 4,
        }
    )


def parquet(folder: Path) -> str:
    pq.write_table(table(), folder / "part.parquet")
    return str(folder)


def lance(folder: Path) -> str:
    pytest.importorskip("lance").write_dataset(table(), folder / "images.lance")
    return str(folder / "images.lance")


def hugging_face(folder: Path) -> str:
    datasets = pytest.importorskip("datasets")
    columns = table().to_pydict()
    columns["image"] = [data and {"bytes": data, "path": None} for data in columns["image"]]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "name": datasets.Value("string"),
            "tags": datasets.Sequence(datasets.Value("string")),
            "year": datasets.Value("int64"),
        }
    )
    datasets.Dataset.from_dict(columns, features).to_parquet(folder / "data" / "train-00000.parquet")
    return f"hf:{folder}@train"


def webdataset(folder: Path) -> str:
    with tarfile.open(folder / "000.tar", "w") as tar:
        for row in table().to_pylist():
            fields = b'{"tags": ["drawn"], "year": 2026}'
            for suffix, data in (("png", row["image"] or b""), ("json", fields)):
                member = tarfile.TarInfo(f"{Path(row['name']).stem}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(folder / "*.tar")


def backfill(stack: Stack, source: str, collection: str, folder: Path) -> subprocess.CompletedProcess[str]:
    run = command(stack, source, collection, folder / "outcomes")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": os.fspath(folder / "hugging-face")}
    return subprocess.run(run, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.parametrize("make", [parquet, lance, hugging_face, webdataset])
def test_images_of_a_table_are_added_with_its_metadata_and_failures_are_reported(
    stack: Stack, tmp_path: Path, make: Callable[[Path], str]
) -> None:
    collection = f"from-{make.__name__.replace('_', '-')}"
    done = backfill(stack, make(tmp_path), collection, tmp_path)
    assert done.returncode == 1, done.stderr
    assert "3 added" in done.stderr
    assert "1 failed (1 " in done.stderr
    images = httpx.get(f"{stack.http}/v1/collections/{collection}/images").json()["images"]
    assert {(image["name"], *image["tags"], image["attributes"]["year"]) for image in images} == {
        (name, "drawn", "2026") for name in IMAGES
    }
    rows = pq.read_table(tmp_path / "outcomes").to_pylist()
    assert sorted(row["outcome"] for row in rows) == ["created"] * 3 + ["failed"]
    assert [bool(row["detail"]) for row in rows if row["outcome"] == "failed"] == [True]


def test_a_collection_of_another_model_ends_the_command(stack: Stack, tmp_path: Path) -> None:
    model = types_pb2.ModelInfo(family="open_clip", variant="other", weights_digest="0" * 64, dimension=8)
    model.crop_policy = types_pb2.CROP_POLICY_BLUR
    with grpc.insecure_channel(stack.services["searcher"]) as channel:
        request = search_pb2.CreateCollectionRequest(name="of-another-model", model=model)
        search_pb2_grpc.SearchServiceStub(channel).CreateCollection(request)
    done = backfill(stack, parquet(tmp_path), "of-another-model", tmp_path)
    assert done.returncode == 1
    assert "of-another-model" in done.stderr
    assert "model" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
