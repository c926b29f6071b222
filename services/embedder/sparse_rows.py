"""Tables stored without their zero rows.

An embedder that was trained on few words has a token table with almost only zero rows. Without these rows the
weights file is half as large.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

_ROWS = ".rows"  # after the name of a table: which rows it has, int32, ascending; the last row always


def pack_rows(weights: dict[str, Tensor], table: str) -> dict[str, Tensor]:
    """The same weights with the zero rows of a table (n, …) left out."""
    full = weights[table]
    there = full.flatten(1).any(1)
    there[-1] = True  # says how many rows there are
    rows = there.nonzero()[:, 0]
    return weights | {table: full[rows], table + _ROWS: rows.int()}


def is_packed(file: Path) -> bool:
    """Whether a safetensors file holds a packed table."""
    with safe_open(file, framework="pt") as weights:
        return any(name.endswith(_ROWS) for name in weights.keys())  # noqa: SIM118  # it is not a dict


def unpack_rows(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Restores packed weights; unpacked ones are returned unchanged."""
    unpacked = {name: value for name, value in weights.items() if not name.endswith(_ROWS)}
    for name in unpacked:
        rows = weights.get(name + _ROWS)
        if rows is not None:
            part = weights[name]
            full = torch.zeros(int(rows[-1]) + 1, *part.shape[1:], dtype=part.dtype)
            full[rows.long()] = part
            unpacked[name] = full
    return unpacked
