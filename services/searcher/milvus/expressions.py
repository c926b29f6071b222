"""Filters as Milvus expressions."""

from __future__ import annotations

import json

import numpy as np

from services.searcher.milvus.access import listed
from services.searcher.types import Filter, Level


def quoted(text: str) -> str:
    """A string in an expression."""
    return json.dumps(text, ensure_ascii=False)


def expression(wanted: Filter, level: Level | None = None, seq: int | None = None) -> str:
    """A filter in Milvus' words; "" for none."""
    terms: list[str] = []
    if seq is not None:
        terms.append(f"seq <= {seq}")
    if level is not None:
        terms.append(f"level == {int(level)}")
    if wanted.image_ids:
        terms.append(listed("image_id", wanted.image_ids))
    if wanted.exclude_image_ids:
        terms.append(listed("image_id", wanted.exclude_image_ids, inside=False))
    if wanted.record_ids:
        terms.append(listed("record_id", wanted.record_ids))
    if wanted.exclude_record_ids:
        terms.append(listed("record_id", wanted.exclude_record_ids, inside=False))
    if wanted.tags:
        terms.append(f"ARRAY_CONTAINS_ANY(tags, {json.dumps(list(wanted.tags), ensure_ascii=False)})")
    if wanted.exclude_tags:
        terms.append(
            f"not ARRAY_CONTAINS_ANY(tags, {json.dumps(list(wanted.exclude_tags), ensure_ascii=False)})"
        )
    bounds = (
        ("area", ">=", wanted.min_area),
        ("area", "<=", wanted.max_area),
        ("created_ms", ">=", wanted.created_after_ms),
        ("created_ms", "<", wanted.created_before_ms),
    )
    terms += [f"{field} {sign} {bound}" for field, sign, bound in bounds if bound is not None]
    scores = (
        ("predicted_iou", wanted.min_predicted_iou),
        ("stability_score", wanted.min_stability_score),
    )
    terms += [f"{field} >= {float(np.float32(bound))!r}" for field, bound in scores if bound is not None]
    for name, value in wanted.attributes:
        key, text = json.dumps(name, ensure_ascii=False), json.dumps(value, ensure_ascii=False)
        terms.append(f"attributes[{key}] == {text}")
    return " and ".join(f"({term})" for term in terms)
