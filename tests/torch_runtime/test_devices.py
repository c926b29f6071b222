from __future__ import annotations

import pytest
import torch

from regionsearch.errors import Kind, RegionSearchError
from services.torch_runtime.devices import autocast, choose_precision, find_device, find_devices

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "cart", "meta"])
def test_an_unusable_device_is_refused_by_name(name: str) -> None:
    for names in (name, f"cpu, {name}"):
        with pytest.raises(RegionSearchError, match="cannot be used") as caught:
            find_devices(names)
        assert (caught.value.kind, caught.value.field) == (Kind.INVALID_ARGUMENT, "device")
        assert name in caught.value.message


def test_devices_are_found_by_name() -> None:
    assert find_device("cpu") == CPU
    assert find_devices("cpu") == [CPU]
    assert find_devices("cpu, cpu") == [CPU, CPU]
    assert find_device("auto").type == find_devices("auto")[0].type


def test_auto_precision_on_a_cpu_is_fp32() -> None:
    assert choose_precision("auto", CPU) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16"


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_products_have_the_type_of_the_precision(precision: str, dtype: torch.dtype) -> None:
    with autocast(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
