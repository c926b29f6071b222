"""Emulated TF32: products of numbers with ten bits after the leading one, summed in float32."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from benchmarks.emulation import EmulatedTf32, rounded


def test_numbers_keep_ten_bits_after_the_leading_one() -> None:
    kept, step = 1 + 2.0**-10, 2.0**-11
    values = torch.tensor([1.0, kept, 1 + step, 1 + step / 2, -1 - step, 0.0, 3e38])
    expected = torch.tensor([1.0, kept, kept, 1.0, -kept, 0.0])
    assert torch.equal(rounded(values)[:6], expected)
    assert rounded(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "product", [torch.matmul, torch.mm, lambda a, b: a @ b, lambda a, b: F.linear(a, b.t())]
)
def test_products_are_of_rounded_numbers(product) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    left, right = torch.randn(5, 7), torch.randn(7, 3)
    with EmulatedTf32():
        found = product(left, right)
    torch.testing.assert_close(found, rounded(left) @ rounded(right))
    assert not torch.allclose(found, left @ right, rtol=0, atol=1e-6)


def test_convolutions_and_summands() -> None:
    torch.manual_seed(0)
    image, weight, bias = torch.randn(1, 2, 6, 6), torch.randn(3, 2, 3, 3), torch.full((3,), 1 / 3)
    layer = torch.nn.Conv2d(2, 3, 3)
    layer.weight.data, layer.bias.data = weight, bias  # type: ignore[union-attr]
    with torch.inference_mode(), EmulatedTf32():
        found = layer(image)
        summed = torch.addmm(bias, image[0, 0], torch.ones(6, 3))
    torch.testing.assert_close(found, F.conv2d(rounded(image), rounded(weight), bias))
    torch.testing.assert_close(summed, rounded(image[0, 0]) @ torch.ones(6, 3) + bias)
