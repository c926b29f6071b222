"""What people have goes in as it is, and what comes out goes into their tools."""

from __future__ import annotations

import inspect
import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from regionsearch.client import AsyncClient, Box, Client, Hit, HitImage, Mask, SearchResult
from regionsearch.client.image_inputs import box_of, name_of, read_image_input, several
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.exports import _cvat_mask, to_coco, to_fiftyone, write_cvat, write_yolo
from regionsearch.masks import encode_rle
from tests.client.fakes import MODEL, FakeGateway

PIXELS = np.zeros((4, 6, 3), np.uint8)
PIXELS[:, :3] = (200, 10, 10)


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_pixels_of_any_library_are_an_image() -> None:
    grey = PIXELS[:, :, 0]
    for source in (PIXELS, Image.fromarray(PIXELS), ("a.png", PIXELS), np.asfortranarray(PIXELS)):
        assert (decoded(read_image_input(source)) == PIXELS).all()
    assert (decoded(read_image_input(grey))[:, :, 0] == grey).all()
    rgba = np.dstack([PIXELS, np.full((4, 6, 1), 128, np.uint8)])
    assert Image.open(io.BytesIO(read_image_input(rgba))).mode == "RGBA"
    assert decoded(read_image_input(Image.fromarray(PIXELS).convert("CMYK"))).shape == PIXELS.shape
    turned = Image.fromarray(PIXELS)
    turned.getexif()[0x0112] = 6  # as a phone held upright
    assert decoded(read_image_input(turned)).shape == (6, 4, 3)
    for wrong in (PIXELS / 255, PIXELS[None], np.zeros((0, 0, 3), np.uint8), 3, None):
        with pytest.raises(RegionSearchError) as error:
            read_image_input(wrong)
        assert error.value.kind is Kind.INVALID_ARGUMENT


def test_open_files_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"data")
    with path.open("rb") as file:
        assert [read_image_input(file), read_image_input(file)] == [b"data", b"data"]
        assert name_of(file) == "a.png"
    with path.open() as text, pytest.raises(RegionSearchError, match="binary mode"):
        read_image_input(text)
    with pytest.raises(RegionSearchError, match="cannot be read"):
        read_image_input(file)
    assert read_image_input(memoryview(b"data")) == b"data"


def test_one_image_is_not_several_and_a_folder_is(tmp_path: Path, gateway: FakeGateway) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.png").write_bytes(read_image_input(PIXELS))
    with Client(gateway.http) as client:
        (result,) = client.ingest(str(tmp_path / "deep" / "a.png"))
        assert (result.name, result.outcome) == ("a.png", "created")
        (result,) = client.ingest(tmp_path)
        assert (result.name, result.outcome) == ("deep/a.png", "duplicate")
        assert [one.outcome for one in client.ingest([PIXELS, tmp_path])] == ["duplicate", "failed"]
    assert len(list(several(b"bytes"))) == len(list(several(PIXELS))) == 1


def test_a_box_goes_back_as_it_came(gateway: FakeGateway) -> None:
    edges = {"x_min": 1.0, "y_min": 2.0, "x_max": 3.0, "y_max": 4.0}
    for box in (Box(**edges), edges, (1, 2, 3, 4), np.array([1, 2, 3, 4])):
        assert box_of(box) == edges
    with Client(gateway.http) as client:
        (hit,) = client.search("mug")
        client.search(image=PIXELS, box=hit.box)
    assert gateway.requests[-1][2]["query"]["box"]["x_max"] == 2


def hit(rank: int, name: str, label: str | None) -> Hit:
    mask = np.zeros((10, 20), np.bool_)
    mask[2:4, 4:8] = True
    return Hit(
        rank=rank, score=0.5, image_id=name * 64, region_id=f"{name}-r000", level="region", area=8,
        label=label,
        box=Box(x_min=4, y_min=2, x_max=8, y_max=4), mask=Mask(size=(10, 20), counts=encode_rle(mask)),
        image=HitImage(width=20, height=10, name="x.png", tags=()),
    )  # fmt: skip


@pytest.fixture
def result() -> SearchResult:
    hits = (hit(1, "a", "mug"), hit(2, "a", "dog"), hit(3, "b", "mug"))
    return SearchResult(hits=hits, next_page_token="", model=MODEL, seq=1, truncated=())


def test_hits_become_a_data_frame(result: SearchResult) -> None:
    pytest.importorskip("pandas")
    frame = result.to_dataframe()
    assert list(frame["label"]) == ["mug", "dog", "mug"]
    assert list(frame.loc[0, ["x_min", "y_max", "width"]]) == [4, 4, 20]
    assert (
        len(SearchResult(hits=(), next_page_token="", model=MODEL, seq=1, truncated=()).to_dataframe()) == 0
    )


def test_hits_become_coco(result: SearchResult) -> None:
    document = result.to_coco()
    assert [one["file_name"] for one in document["images"]] == ["x.png", "bbbbbbbb-x.png"]
    assert [one["category_id"] for one in document["annotations"]] == [1, 2, 1]
    assert document["annotations"][0]["bbox"] == [4, 2, 4, 2]
    assert coco_mask.decode(document["annotations"][0]["segmentation"]).sum() == 8
    assert to_coco([hit(1, "a", None)])["categories"] == [{"id": 1, "name": "object"}]


def test_hits_become_detections(result: SearchResult) -> None:
    pytest.importorskip("supervision")
    found = result.to_supervision("a" * 64)
    assert found.xyxy.tolist() == [[4, 2, 8, 4]] * 2
    assert found.mask.sum() == 16
    assert found.data["class_name"].tolist() == ["mug", "dog"]
    assert len(result.to_supervision("c" * 64)) == 0


def test_hits_become_yolo_files(result: SearchResult, tmp_path: Path) -> None:
    first, second = write_yolo(result.hits, tmp_path)
    assert (first.name, second.name) == ("x.txt", "bbbbbbbb-x.txt")
    assert first.read_text().splitlines() == [
        "0 0.300000 0.300000 0.200000 0.200000",
        "1 0.300000 0.300000 0.200000 0.200000",
    ]
    assert (tmp_path / "classes.txt").read_text() == "mug\ndog\n"


def test_hits_become_a_file_of_cvat(result: SearchResult, tmp_path: Path) -> None:
    plain = hit(4, "c", None).model_copy(update={"mask": None})
    write_cvat([*result.hits, plain], tmp_path / "cvat.xml")
    root = ElementTree.parse(tmp_path / "cvat.xml").getroot()
    assert [image.get("name") for image in root.iter("image")] == [
        "x.png",
        "bbbbbbbb-x.png",
        "cccccccc-x.png",
    ]
    mask = next(root.iter("mask"))
    assert [mask.get(name) for name in ("label", "left", "top", "width", "height")] == [
        "mug",
        "4",
        "2",
        "4",
        "2",
    ]
    assert mask.get("rle") == "0, 8"  # begins with the background, of which there is none
    (box,) = root.iter("box")
    assert [box.get(name) for name in ("label", "xtl", "ytl", "xbr", "ybr")] == ["object", "4", "2", "8", "4"]


def test_runs_of_cvat_are_those_of_the_rows() -> None:
    mask = np.array([[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 1]], bool)
    runs = [int(run) for run in _cvat_mask(mask)["rle"].split(", ")]
    values = np.repeat(np.arange(len(runs)) % 2, runs).reshape(2, 3)
    assert values.tolist() == [[1, 0, 1], [0, 1, 1]]


def test_hits_become_samples_of_fiftyone(result: SearchResult, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the library, which is large: it keeps what it is given."""
    library = SimpleNamespace(
        Detection=SimpleNamespace, Detections=SimpleNamespace, Sample=SimpleNamespace, Dataset=_Samples
    )
    monkeypatch.setitem(sys.modules, "fiftyone", library)
    first, second = to_fiftyone(result.hits, "photos").samples
    assert (first.filepath, len(second.regions.detections)) == ("photos/x.png", 1)
    mug, dog = first.regions.detections
    assert (mug.label, dog.label, mug.confidence) == ("mug", "dog", 0.5)
    assert mug.bounding_box == [0.2, 0.2, 0.2, 0.2]
    assert mug.mask.shape == (2, 4) and mug.mask.all()


class _Samples:
    def __init__(self) -> None:
        self.samples: list[Any] = []

    def add_samples(self, samples: list[Any]) -> None:
        self.samples += samples


def test_notebooks_show_outlined_hits_and_masks(
    result: SearchResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = io.BytesIO()
    Image.new("RGB", (20, 10)).save(content, "PNG")
    with Client("http://localhost:9") as client:
        monkeypatch.setattr(client, "content", lambda image_id, collection: content.getvalue(), raising=False)
        shown = client.gallery(result, width=16)
    html = shown._repr_html_()
    assert html.count("data:image/webp;base64,") == 3
    assert "mug · 0.500 · x.png" in html
    assert shown.images[0].size == (16, 8)
    assert np.asarray(shown.images[0]).max() > 100  # the line
    mask = result[0].mask
    assert mask is not None
    assert (np.asarray(Image.open(io.BytesIO(mask._repr_png_()))) == mask.to_array()).all()


def test_results_are_short_to_look_at(result: SearchResult) -> None:
    assert repr(result) == "<3 hits, best 0.500>"
    assert repr(result[0]) == "<Hit 1: 'mug' 0.500 in 'x.png', a-r000>"
    assert "counts" not in repr(result[0].mask)
    assert result._repr_html_().count("<tr>") == 4


def test_help_says_what_a_call_returns() -> None:
    with Client("http://localhost:9") as client:
        assert inspect.signature(client.search).return_annotation == "SearchResult"
        assert "level" in inspect.signature(client.search).parameters
    assert "Coroutine" in inspect.signature(AsyncClient("http://localhost:9").search).return_annotation


def test_pages_of_a_search_follow_each_other(gateway: FakeGateway) -> None:
    with Client(gateway.http) as client:
        assert [len(page) for page in client.search_pages("mug", page_size=1)] == [1]
        gateway.pages = 3
        assert [len(page) for page in client.search_pages("mug", page_size=1)] == [1, 1, 1]
    assert [body["page_token"] for _, _, body in gateway.requests[-3:]] == ["", "1", "2"]
