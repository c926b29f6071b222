from __future__ import annotations

import pytest
import torch

from regionsearch.errors import Kind, RegionSearchError
from services.torch_runtime.devices import allow_tf32, autocast, choose_precision, find_device, find_devices

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
    assert choose_precision("auto", CPU) == choose_precision("auto", CPU, {"bf16": 1.0}) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16"


@pytest.mark.parametrize(
    ("rates", "has_bf16", "chosen"),
    [
        (None, True, "bf16"),
        (None, False, "fp16"),
        ({}, True, "fp32"),
        ({"bf16": 0.68, "tf32": 0.995}, True, "tf32"),
        ({"bf16": 0.99, "tf32": 0.999}, True, "bf16"),
        ({"bf16": 0.96, "fp16": 1.0, "tf32": 1.0}, True, "fp16"),
        ({"bf16": 1.0, "tf32": 1.0}, False, "fp32"),
        ({"bf16": 1.0, "fp16": 1.0}, False, "fp16"),
    ],
)
def test_auto_precision_on_a_gpu_is_what_is_known_to_match(
    monkeypatch: pytest.MonkeyPatch, rates: dict[str, float] | None, has_bf16: bool, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    assert choose_precision("auto", torch.device("cuda"), rates) == chosen
    assert choose_precision("fp16", torch.device("cuda"), rates) == "fp16"


def test_products_are_exact_outside_of_tf32() -> None:
    def modes() -> set[str]:
        return {torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision}

    allow_tf32(False)
    with autocast("fp32", CPU):
        assert modes() == {"ieee"}
    with autocast("tf32", CPU):
        assert modes() == {"tf32"}
    assert modes() == {"ieee"}


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_products_have_the_type_of_the_precision(precision: str, dtype: torch.dtype) -> None:
    with autocast(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
