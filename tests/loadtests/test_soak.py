"""The soak script tells growth from noise, and watches real processes."""

import random
import subprocess
import sys

import psutil
import pytest

from loadtests import soak


def series(per_minute, minutes=10, noise=3.0, start=500.0):
    """Samples every 5 s with a slope and noise."""
    draw = random.Random(1)
    return [
        (5.0 * i, start + per_minute * 5.0 * i / 60 + draw.uniform(-noise, noise))
        for i in range(minutes * 12)
    ]


def test_a_steady_rise_of_memory_is_growth_and_noise_is_not():
    leaking = soak.slope("gateway", "memory MiB", series(8.0))
    assert leaking.grows
    assert leaking.per_minute == pytest.approx(8.0, abs=0.5)
    assert not soak.slope("gateway", "memory MiB", series(0.0, noise=40.0)).grows


def test_the_warm_up_and_single_peaks_do_not_count():
    samples = series(0.0)
    risen = [(at, value + 300 * min(1.0, at / 190)) for at, value in samples]
    assert not soak.slope("segmenter", "memory MiB", risen).grows
    peaks = [(at, value + (400 if i % 17 == 0 else 0)) for i, (at, value) in enumerate(samples)]
    assert not soak.slope("segmenter", "memory MiB", peaks).grows


def test_one_more_descriptor_every_twenty_seconds_is_growth():
    leaking = [(at, 40.0 + at // 20) for at, _ in series(0.0)]
    assert soak.slope("gateway", "descriptors", leaking).grows


def test_a_sample_sees_memory_descriptors_and_threads_of_a_process():
    code = """
import threading, time
kept, files = bytearray(64 << 20), [open("/dev/null") for _ in range(20)]
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print(flush=True)
time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        child.stdout.readline()
        seen = soak.sample(psutil.Process(child.pid))
    finally:
        child.kill()
        child.wait()
    assert seen["memory MiB"] > 64
    assert seen["descriptors"] >= 20
    assert seen["threads"] == 2


def test_a_stack_without_all_its_processes_is_not_watched(tmp_path):
    # Not this process: the stack that tests share may be its child.
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with pytest.raises(RuntimeError, match="embedder, gateway, searcher, segmenter"):
            soak.watch(child.pid, 0.1, tmp_path)
    finally:
        child.kill()
        child.wait()


def test_a_process_that_ends_during_the_soak_is_an_error(monkeypatch, tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.2)"])
    process = psutil.Process(child.pid)
    monkeypatch.setattr(soak, "processes", lambda _: dict.fromkeys(soak.MODULES, process))
    with pytest.raises(RuntimeError, match="ended after"):
        soak.watch(child.pid, 60, tmp_path, every_s=0.05)
    child.wait()
