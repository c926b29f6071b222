"""Places: how they are written, distances on a sphere, boxes over the date line, and filters of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.conditions import AnyOf, Condition, ValueTest
from services.searcher.engine import Engine
from services.searcher.geo import Area, Circle, GeoBox, inside, place_of
from services.searcher.queries import Filter
from services.searcher.scrolling import Scroll
from services.searcher.types import Level, Record, StoredImage, Upsert
from tests.searcher.conftest import failing, search_request, unit_vectors
from tests.searcher.engines import engine
from tests.searcher.random_ops import MODEL

__all__ = ["engine"]  # the fixture

OSLO, BERGEN, FIJI, SAMOA = "59.9139,10.7522", "60.3913,5.3221", "-17.7134, 178.0650", "-13.759,-172.1046"


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("59.91,10.75", (59.91, 10.75)),
        (" -1. , +180 ", (-1.0, 180.0)),
        ("90,-180", (90.0, -180.0)),
        ("90.1,0", None),
        ("0,180.5", None),
        ("1e1,2", None),
        ("59.91", None),
        ("1,2,3", None),
        ("nan,0", None),
        ("١,٢", None),
    ],
)
def test_a_place_is_latitude_and_longitude(value: str, place: tuple[float, float] | None) -> None:
    assert place_of(value) == place


def test_circles_are_on_a_sphere_around_poles_and_over_the_date_line() -> None:
    assert inside([OSLO, BERGEN, "home"], Circle(59.9139, 10.7522, 304_000)) == [OSLO]
    assert inside([OSLO, BERGEN], Circle(59.9139, 10.7522, 306_000)) == [OSLO, BERGEN]  # 305 km
    assert inside(["0,179.99", "0,-179.99", "0,178"], Circle(0, 180, 2000)) == ["0,179.99", "0,-179.99"]
    assert inside(["89.99,0", "89.99,180", "89.9,90"], Circle(90, 45, 2000)) == ["89.99,0", "89.99,180"]
    rng = np.random.default_rng(3)
    for latitude, longitude in zip(rng.uniform(-90, 90, 50), rng.uniform(-180, 180, 50), strict=True):
        a, b, apart = map(math.radians, (latitude, 20.0, longitude - 30.0))
        cosine = math.sin(a) * math.sin(b) + math.cos(a) * math.cos(b) * math.cos(apart)
        distance = 6_371_008.8 * math.acos(max(-1.0, min(1.0, cosine)))
        for radius in (distance * 0.999, distance * 1.001):
            found = inside([f"{latitude:.9f},{longitude:.9f}"], Circle(20.0, 30.0, radius))
            assert bool(found) == (radius > distance)


def test_boxes_go_from_west_to_east() -> None:
    values = [OSLO, BERGEN, FIJI, SAMOA, "0,180", "0,-180"]
    assert inside(values, GeoBox(50, 10, 70, 20)) == [OSLO]
    assert inside(values, GeoBox(-30, 170, 10, -170)) == [FIJI, SAMOA, "0,180", "0,-180"]
    assert inside(values, GeoBox(-90, -180, 90, 180)) == values
    assert inside(values, GeoBox(59.9139, 10.7522, 59.9139, 10.7522)) == [OSLO]


def found(engine: Engine, area: Area, *, negate: bool = False) -> set[str]:
    test = Condition(attribute="place", test=ValueTest(area=area), negate=negate)
    page = engine.scroll("c", Scroll(Level.REGION, Filter(conditions=(AnyOf((test,)),))))
    return {record.record_id for record in page.stored.records}


def test_filters_find_places_of_images_and_of_records_in_every_engine(engine: Engine) -> None:
    def write(name: str, place: str, own: dict[str, str]) -> None:
        image = StoredImage(name, attributes={"place": place} if place else {})
        records = [
            Record(f"{name}{key}", name, Level.REGION, attributes={"place": value} if value else {})
            for key, value in own.items()
        ]
        vectors = np.eye(4, dtype=np.float32)[: len(records)]
        engine.upsert("c", MODEL, Upsert([image], records, vectors))

    write("a", OSLO, {"1": "", "2": FIJI})
    write("b", SAMOA, {"1": ""})
    write("c", "unknown", {"1": "", "2": OSLO})
    pacific, norway = GeoBox(-30, 170, 10, -170), GeoBox(58, 4, 62, 12)
    assert found(engine, pacific) == {"a2", "b1"}
    assert found(engine, norway) == {"a1", "c2"}
    assert found(engine, norway, negate=True) == {"a2", "b1", "c1"}
    write("d", BERGEN, {"1": "", "2": "x"})  # what comes later is found, too
    assert found(engine, norway) == {"a1", "c2", "d1"}
    near = Circle(59.9, 10.7, 10_000)
    if engine.name == "milvus":
        with pytest.raises(RegionSearchError, match="inside") as caught:
            found(engine, near)
        assert caught.value.kind is Kind.UNIMPLEMENTED
        return
    assert found(engine, near) == {"a1", "c2"}
    assert found(engine, near, negate=True) == {"a2", "b1", "c1", "d1", "d2"}


@pytest.mark.parametrize(
    ("condition", "field"),
    [
        ({"near": {"latitude": 91, "radius_m": 1}}, ".near.latitude"),
        ({"near": {"longitude": float("nan"), "radius_m": 1}}, ".near.longitude"),
        ({"near": {"radius_m": 0}}, ".near.radius_m"),
        ({"near": {"radius_m": float("inf")}}, ".near.radius_m"),
        ({"inside": {"south": 2, "north": 1}}, ".inside.south"),
        ({"inside": {"east": 181}}, ".inside.east"),
        ({"inside": {"north": 1}, "near": {"radius_m": 1}}, ""),
    ],
)
async def test_wrong_areas_are_named(stub, condition: dict, field: str) -> None:
    request = search_request(unit_vectors(1))
    request.filter.conditions.add(attribute="place", **condition)
    assert await failing(stub.Search(request)) == (Kind.INVALID_ARGUMENT, f"filter.conditions[0]{field}")
