"""Every kind of user against the real stack: what they send is what it takes."""

import csv
import os
import subprocess
import sys

import pytest

from loadtests.__main__ import locust_command, target_of
from loadtests.launch import free_ports


@pytest.fixture
def target(stack):
    return target_of(stack)


def load(target, out, enough, *, durations_s, rate=None):
    """Load in which no request may fail, however slow it is, for as long as it takes to have seen enough."""
    promise = out / "slo.toml"
    promise.write_text("error_budget = 0.0\ngenerator_cpu = 9.0\n[p95_ms]\n")
    environment = os.environ | {"PYTHONPATH": "."}
    for duration_s in durations_s:
        command = locust_command(target, users=7, duration_s=duration_s, rate=rate, out=out, ui=False)
        command += ["--warm-up", "3600", "--slo", str(promise), "--stop-timeout", "120"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (out / "report.html").stat().st_size > 10_000
        with (out / "load_stats.csv").open() as lines:
            counts = {row["Name"]: int(row["Request Count"]) for row in csv.DictReader(lines)}
        if enough(counts):
            return
    raise AssertionError(counts)


def test_each_kind_of_user_is_understood(target, tmp_path):
    wanted = {"ingest", "segment: first click", "search: write an image"}
    load(
        target,
        tmp_path,
        lambda counts: wanted <= set(counts) and any("embed: " in name for name in counts),
        durations_s=(8, 60, 240),
    )


@pytest.mark.slow
def test_several_generators_are_judged_as_one(target, tmp_path):
    promise = tmp_path / "slo.toml"
    promise.write_text("error_budget = 0.0\ngenerator_cpu = 9.0\n[p95_ms]\n")
    (port,) = free_ports(1)
    environment = os.environ | {"PYTHONPATH": "."}
    command = locust_command(target, users=4, duration_s=10, rate=None, out=tmp_path, ui=False)
    command += ["--warm-up", "1", "--slo", str(promise), "--master", "--expect-workers", "2"]
    command += ["--master-bind-host", "127.0.0.1", "--master-bind-port", str(port)]
    worker = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--worker"]
    worker += ["--master-host", "127.0.0.1", "--master-port", str(port)]
    workers = [subprocess.Popen(worker, env=environment) for _ in range(2)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    finally:
        for one in workers:
            one.terminate()
            one.wait(30)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Generators: " in done.stdout, done.stdout + done.stderr


def test_arrivals_do_not_wait_for_answers(target, tmp_path):
    load(
        target,
        tmp_path,
        lambda counts: counts["Aggregated"] > counts.get("ingest", 0) > 0,
        durations_s=(4, 30, 240),
        rate=4.0,
    )
