"""A collection on a plane."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from gateway.projection import placed_among, project
from regionsearch.cli import app
from regionsearch.client import Client
from regionsearch.errors import RegionSearchError
from tests.gateway.conftest import BLUE, GREEN, RED, Running, add, scene


def clusters(count: int, each: int, spread: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(5)
    middles = draw.normal(size=(count, 64))
    label = np.repeat(np.arange(count), each)
    vectors = (middles[label] + spread * draw.normal(size=(len(label), 64))).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), label


def test_what_is_alike_lies_together() -> None:
    vectors, label = clusters(8, 25)
    places = project(vectors)
    assert places.shape == (200, 2)
    assert places.min() >= 0 and places.max() <= 1
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distance, 9)
    nearest = np.argsort(distance, axis=1)[:, :5]
    assert (label[nearest] == label[:, None]).mean() > 0.95
    assert (project(vectors) == places).all()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5])
def test_few_vectors_have_places_too(count: int) -> None:
    places = project(clusters(5, 1)[0][:count])
    assert places.shape == (count, 2)
    assert np.isfinite(places).all() and (places >= 0).all() and (places <= 1).all()


def test_equal_vectors_are_in_the_middle() -> None:
    assert (project(np.ones((7, 4), np.float32)) == 0.5).all()


def test_new_vectors_find_their_place_among_those_that_stay() -> None:
    vectors, label = clusters(8, 25)
    places = project(vectors[::2])
    known = np.full((200, 2), np.nan, np.float32)
    known[::2] = places
    found = placed_among(vectors, known)
    assert (found[::2] == places).all()
    distance = np.linalg.norm(found[1::2, None] - places[None], axis=2)
    assert (label[::2][distance.argmin(axis=1)] == label[1::2]).mean() > 0.95


@pytest.fixture(scope="module")
def mapped(shared_gateway: Running) -> str:
    name = "map-tests"
    shared_gateway.http.post("/v1/collections", json={"name": name})
    for number in range(3):
        image = scene((f"#{number}00000", (0, 0, 20, 20)), RED, BLUE if number else GREEN)
        add(shared_gateway, name, (f"{number}.png", image), tags=["first"] if number == 0 else [])
    return name


def test_both_transports_give_the_same_map(gateway: Running, mapped: str) -> None:
    with Client(gateway.url) as http, Client(f"grpc://127.0.0.1:{gateway.server.port}") as grpc:
        found = http.map(mapped)
        assert found == grpc.map(mapped)
        regions = {one.region_id for one in http.records(mapped, level="region")}
        assert {point.region_id for point in found.points} == regions
        assert {image.name for image in found.images} == {"0.png", "1.png", "2.png"}
        assert not found.truncated
        assert all(0 <= place <= 1 for point in found.points for place in (point.x, point.y))
        whole = http.map(mapped, level="image", max_points=2)
        assert (len(whole.points), whole.truncated) == (2, True)
        assert [point.region_id for point in whole.points] == [None, None]
        assert {image.name for image in http.map(mapped, filter={"tags": ["first"]}).images} == {"0.png"}
        with pytest.raises(RegionSearchError, match="nowhere"):
            http.map("nowhere")


def test_a_map_follows_what_is_written(gateway: Running, mapped: str) -> None:
    with Client(gateway.url) as client:
        before = client.map(mapped)
        (new,) = add(gateway, mapped, ("new.png", scene(("#777777", (0, 0, 30, 30)), RED)))
        after = client.map(mapped)
        assert len(after.points) > len(before.points)
        assert {one.region_id: one for one in before.points}.items() <= {
            one.region_id: one for one in after.points
        }.items(), "what was there stays"
        client.delete_image(new["image_id"], mapped)
        assert client.map(mapped) == before


def test_the_command_line_prints_places(gateway: Running, mapped: str) -> None:
    def run(*options: str) -> str:
        result = CliRunner().invoke(app, ["map", "-c", mapped, "--url", gateway.url, *options])
        assert result.exit_code == 0, result.output
        return "".join(line for line in result.output.splitlines(True) if "[info " not in line)

    assert len(run().splitlines()) == 1 + len(json.loads(run("--json"))["points"])
    assert len(run("--whole", "-n", "2").splitlines()) == 3
