from pathlib import Path

from loadtests.scenes import HEIGHT, WIDTH, Scene
from loadtests.slo import Observed, Slo
from regionsearch.images import decode_image

PROMISE = Slo(error_budget=0.01, p95_ms={"search": 100}, generator_cpu=0.9)


def seen(requests=1000, failures=0, p95=80.0):
    return Observed(requests, failures, p95 / 2, p95, p95 * 2)


def test_a_run_that_keeps_its_promises_breaks_nothing():
    assert PROMISE.broken({"search": seen(), "other": seen(p95=9999)}, [0.5, 0.6]) == []


def test_each_promise_is_judged_for_itself():
    assert ["p95 is 101 ms" in fault for fault in PROMISE.broken({"search": seen(p95=101)}, [])] == [True]
    (fault,) = PROMISE.broken({"search": seen(failures=11)}, [])
    assert "11 of 1000 requests failed (1.10%)" in fault
    assert PROMISE.broken({"search": seen(failures=10)}, []) == []
    (fault,) = PROMISE.broken({"search": seen()}, [0.95, 1.0])
    assert "98% of its core" in fault


def test_failures_of_all_kinds_share_the_budget():
    assert PROMISE.broken({"search": seen(failures=8), "other": seen(failures=8)}, []) == []
    assert PROMISE.broken({"search": seen(failures=8), "other": seen(failures=18)}, [])


def test_a_run_without_requests_proves_nothing():
    assert PROMISE.broken({}, []) == ["no request was made"]


def test_the_committed_promise_is_readable():
    promise = Slo.load(Path("loadtests/slo.toml"))
    assert 0 < promise.error_budget < 0.05
    assert all(limit > 0 for limit in promise.p95_ms.values())


def test_scenes_are_images_that_differ_by_seed_and_agree_with_themselves():
    first, again, other = Scene(1), Scene(1), Scene(2)
    assert first.jpeg == again.jpeg != other.jpeg
    assert decode_image(first.jpeg).shape == (HEIGHT, WIDTH, 3)
    x, y = first.centre(7)
    assert 0 <= x < WIDTH
    assert 0 <= y < HEIGHT
