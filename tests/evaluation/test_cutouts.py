"""The exam of photographed things: what is taken, and that its data set tells the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from evaluation.cli import app
from evaluation.cutouts import find_cut_outs, is_public, write_cut_outs
from evaluation.loaders import load
from regionsearch.errors import Kind, RegionSearchError

PUBLIC = [name for name in ("lion", "frog", "toad", "apple", "guitar", "violin", "otter") if is_public(name)]
KEPT = next(name for name in ("lion", "frog", "toad", "apple", "guitar", "violin") if not is_public(name))


def photograph(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    coarse = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(smooth) + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)


def stamp(folder: Path, name: str, text: str, pixels: np.ndarray, opaque: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width]
    inside = ((y - height / 2) / (height / 2)) ** 2 + ((x - width / 2) / (width / 2)) ** 2 < 0.9
    alpha = np.full((height, width), 255) if opaque else inside * 255
    Image.fromarray(np.dstack([pixels, alpha.astype(np.uint8)])).save(folder / f"{name}.png")
    (folder / f"{name}.txt").write_text(text)


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    rng, folder = np.random.default_rng(0), tmp_path / "stamps"
    for name in PUBLIC[:2]:
        stamp(folder / "animals", name, f"A {name}.\nde.utf8=Ein Ding.", photograph(rng, 120, 90))
    stamp(folder / "animals", KEPT, f"A {KEPT}.", photograph(rng, 120, 90))
    stamp(folder / "animals", "flat", f"A {PUBLIC[0]}.", np.full((120, 90, 3), 77, np.uint8))
    stamp(folder / "animals", "framed", f"A {PUBLIC[0]}.", photograph(rng, 120, 90), opaque=True)
    stamp(folder / "cartoon", "drawn", f"A {PUBLIC[0]}.", photograph(rng, 120, 90))
    return folder


@pytest.fixture
def wallpapers(tmp_path: Path) -> Path:
    folder = tmp_path / "nature"
    folder.mkdir()
    Image.fromarray(photograph(np.random.default_rng(1), 500, 800)).save(folder / "Dune.jpg")
    return folder


def test_only_photographed_cut_outs_of_the_public_half_are_taken(stamps: Path) -> None:
    assert sorted(one.name for one in find_cut_outs(stamps)) == sorted(PUBLIC[:2])


def test_the_split_of_the_names_is_the_one_that_was_agreed() -> None:
    assert (is_public("guitar"), is_public("GUITAR")) == (is_public("Guitar"),) * 2
    halves = [is_public(f"name {i}") for i in range(1000)]
    assert 0.4 < sum(halves) / len(halves) < 0.6


def test_the_data_set_is_the_same_every_time_and_its_masks_fit_its_images(
    stamps: Path, wallpapers: Path, tmp_path: Path
) -> None:
    first = load(write_cut_outs(tmp_path / "a", 12, stamps=stamps, wallpapers=wallpapers))
    again = load(write_cut_outs(tmp_path / "b", 12, stamps=stamps, wallpapers=wallpapers))
    assert first.digest() == again.digest()
    assert set(first.categories) == set(PUBLIC[:2])
    things = [(sample, thing) for sample in first.samples for thing in sample.instances]
    assert len(things) >= 12
    assert {sample.split for sample in first.samples} == {"tune", "test"}
    for sample, thing in things:
        assert thing.mask["size"] == [sample.height, sample.width]
        assert sample.pixels().shape == (sample.height, sample.width, 3)


@pytest.mark.parametrize(
    ("stamps_there", "package"), [(False, "tuxpaint-stamps-default"), (True, "mate-backgrounds")]
)
def test_a_missing_package_is_named(stamps: Path, tmp_path: Path, stamps_there: bool, package: str) -> None:
    folder = stamps if stamps_there else tmp_path / "nowhere"
    with pytest.raises(RegionSearchError, match=package) as caught:
        write_cut_outs(tmp_path / "out", 1, stamps=folder, wallpapers=tmp_path / "nowhere")
    assert caught.value.kind is Kind.NOT_FOUND


def test_cutouts_and_another_data_set_exclude_each_other(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["--cutouts", "--fixture", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "exclude each other" in done.output
