"""Metrics that need more than a counter."""

import platform
import sys
from importlib.metadata import version
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY

from services.runtime.metrics import DeviceMemory


def samples():
    (family,) = DeviceMemory().collect()
    return {(s.labels["device"], s.labels["state"]): s.value for s in family.samples}


def torch_with(initialised, reserved):
    cuda = SimpleNamespace(
        is_initialized=lambda: initialised,
        device_count=lambda: len(reserved),
        memory_reserved=lambda index: reserved[index],
        memory_allocated=lambda index: reserved[index] // 2,
        get_device_properties=lambda index: SimpleNamespace(total_memory=1000),
    )
    return SimpleNamespace(cuda=cuda)


def test_a_process_says_which_version_it_is():
    versions = {"version": version("regionsearch"), "python": platform.python_version()}
    assert REGISTRY.get_sample_value("regionsearch_build_info", versions) == 1


def test_device_memory_is_that_of_the_devices_in_use(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", torch_with(True, [0, 600]))
    assert samples() == {("cuda:1", "allocated"): 300, ("cuda:1", "reserved"): 600, ("cuda:1", "total"): 1000}


@pytest.mark.parametrize(
    "torch", [None, SimpleNamespace(), torch_with(False, [600])], ids=["none", "half", "idle"]
)
def test_without_a_gpu_device_memory_has_no_samples(monkeypatch, torch):
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert samples() == {}
