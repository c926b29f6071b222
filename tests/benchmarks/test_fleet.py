"""Simulated fleets: they repeat themselves, obey queueing theory, and agree with real processes."""

import concurrent.futures
import statistics
import time

import httpx
import pytest

from benchmarks import bench_scaling
from benchmarks.bench_gateway import sample_image, sender
from benchmarks.fleet.simulation import Device, Fleet, Load, simulate
from benchmarks.simulated_services import REGIONS

AT_ONCE = Device(0.0, 0.0)


def test_the_same_seed_gives_the_same_figures():
    fleet = Fleet(2, 2)
    load = Load(
        60, images_per_s=5, queries_per_s=5, burst=(10, 20, 3), lost_at=30, scale_every_s=5, start_s=9
    )
    assert simulate(fleet, load, seed=1) == simulate(fleet, load, seed=1)
    assert simulate(fleet, load, seed=1).images != simulate(fleet, load, seed=2).images


def test_one_device_without_batches_is_an_m_d_1_queue():
    """Mean time of a constant service time D at utilization u: D + D·u / (2 (1 - u))."""
    fleet = Fleet(segmenter=Device(0.0, 0.1, 1), embedder=AT_ONCE, prompts=1, image_cpu_s=0.0, in_work=1000)
    for used, rate in ((0.5, 5.0), (0.8, 8.0)):
        outcome = simulate(fleet, Load(1000, images_per_s=rate))
        expected = 0.1 + 0.1 * used / (2 * (1 - used))
        assert statistics.mean(outcome.images) == pytest.approx(expected, rel=0.06)
        assert outcome.device_s["segmenter"] == pytest.approx(1000 * used, rel=0.05)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_fleet_with_enough_to_do_works_in_full_batches(workers):
    device = Device(0.1, 0.01, 32)
    fleet = Fleet(workers, 1, segmenter=device, embedder=AT_ONCE, prompts=1, image_cpu_s=0.0, in_work=1000)
    outcome = simulate(fleet, Load(30, clients=96 * workers))
    assert outcome.rate(5) == pytest.approx(workers * device.items_per_s, rel=0.03)


def test_a_gateway_is_the_limit_where_its_cpu_is():
    fleet = Fleet(64, 64, segmenter=AT_ONCE, embedder=AT_ONCE, image_cpu_s=0.01, in_work=64)
    outcome = simulate(fleet, Load(10, clients=64))
    assert outcome.rate(1) == pytest.approx(100, rel=0.02)


def test_a_lost_node_costs_time_and_no_image():
    load = Load(120, images_per_s=8, queries_per_s=5)
    steady = simulate(Fleet(4, 4), load)
    lost = simulate(Fleet(4, 4), Load(**(vars(load) | {"lost_at": 60.0})))
    assert not lost.failed
    assert lost.workers == {"segmenter": 3, "embedder": 3}
    assert len(lost.images) == pytest.approx(len(steady.images), rel=0.02)
    assert lost.held_s["segmenter"] == 4 * 120 - 60


def test_more_than_may_wait_is_refused():
    outcome = simulate(Fleet(waiting=8), Load(60, images_per_s=20))
    assert outcome.failed["image: OVERLOADED"] > 500
    assert max(outcome.images) < 10


def real_run(workers, segmenter, embedder, in_work):
    """Images a second and the median seconds of an image: stand-ins behind a real gateway that is full."""

    def settings(device):
        return {
            "batch_s": device.batch_s,
            "item_s": device.item_s,
            "batching__max_batch": device.max_batch,
        }

    images = [sample_image(number) for number in range(5 * in_work)]
    limits = {"limits__max_images_in_work": in_work}
    with (
        bench_scaling.fleet(workers, 1, settings(segmenter), settings(embedder), **limits) as (_, (url,)),
        httpx.Client(timeout=300) as http,
        concurrent.futures.ThreadPoolExecutor(in_work) as pool,
    ):
        send = sender(http, url)

        def timed(image):
            begin = time.perf_counter()
            send(image)
            return time.perf_counter(), time.perf_counter() - begin

        full = sorted(pool.map(timed, images))[in_work - 1 : -in_work]
    rate = (len(full) - 1) / (full[-1][0] - full[0][0])
    return rate, statistics.median(seconds for _, seconds in full)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_simulation_agrees_with_real_processes(workers):
    segmenter, embedder = Device(0.2, 0.2, 4), Device(0.1, 0.01, 64)
    in_work = 8 * workers
    rate, seconds = real_run(workers, segmenter, embedder, in_work)
    fleet = Fleet(
        workers, workers, segmenter=segmenter, embedder=embedder, prompts=1, regions=REGIONS, in_work=in_work
    )
    simulated = simulate(fleet, Load(60, clients=in_work))
    median = statistics.median(simulated.images)
    print(f"{workers}: images/s {rate:.2f}, {simulated.rate(10):.2f}; median {seconds:.2f} s, {median:.2f} s")
    assert simulated.rate(10) == pytest.approx(rate, rel=0.15)
    assert median == pytest.approx(seconds, rel=0.15)
