"""Filters as Milvus expressions."""

from __future__ import annotations

import json
import sys

import numpy as np

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.conditions import Condition
from services.searcher.geo import Area, Circle
from services.searcher.milvus.access import listed
from services.searcher.milvus.tables import Placement
from services.searcher.queries import Filter
from services.searcher.types import Level


def quoted(text: str) -> str:
    """A string in an expression."""
    return json.dumps(text, ensure_ascii=False)


def expression(
    placement: Placement, wanted: Filter, level: Level | None = None, seq: int | None = None
) -> str:
    """A filter in Milvus' words; "" for none.

    Raises:
        RegionSearchError: FAILED_PRECONDITION for ranges of attributes that were not stored as numbers, or
            places; UNIMPLEMENTED for circles.
    """
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
    for one in wanted.conditions:
        tests = [_test(placement, test, negate=test.negate ^ one.negate) for test in one.conditions]
        terms.append((" and " if one.negate else " or ").join(f"({test})" for test in tests))
    return " and ".join(f"({term})" for term in terms)


def _test(placement: Placement, condition: Condition, *, negate: bool) -> str:
    """One condition. A comparison with what is missing is neither true nor false to Milvus."""
    if condition.tag:
        found = f"ARRAY_CONTAINS(tags, {quoted(condition.tag)})"
        return f"not {found}" if negate else found
    if condition.test.area is not None:
        return _place(placement, condition.attribute, condition.test.area, negate=negate)
    test = condition.test
    path = f"attributes[{quoted(condition.attribute)}]"
    terms: list[str] = []
    for kind, bounds in (("number", test.number), ("time", test.time)):
        if bounds is not None:
            if not placement.typed:
                raise RegionSearchError(
                    Kind.FAILED_PRECONDITION,
                    f"collection {placement.collection.name!r} was created before attributes were stored as "
                    "numbers and times: write its images to a new one",
                    field="filter.conditions",
                )
            path = f'typed["{kind}"][{quoted(condition.attribute)}]'
            terms = [f"{path} {sign} {bound!r}" for sign, bound in bounds.signs()]
    if test.values:
        terms = [" or ".join(f"{path} == {quoted(value)}" for value in test.values)]
    elif test.prefix:
        terms = [f"{path} >= {quoted(test.prefix)}"]
        if behind := _behind(test.prefix):
            terms.append(f"{path} < {quoted(behind)}")
    known = f"exists {path}"
    passes = " and ".join(f"({term})" for term in terms)
    if negate:
        return f"(not ({known})) or (not ({passes}))" if passes else f"not ({known})"
    return passes or known


def _place(placement: Placement, attribute: str, area: Area, *, negate: bool) -> str:
    """Whether an attribute is a place in a box."""
    if isinstance(area, Circle):
        raise RegionSearchError(
            Kind.UNIMPLEMENTED,
            "the milvus engine has no circles (near): use a box (inside)",
            field="filter.conditions",
        )
    if not placement.places:
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION,
            f"collection {placement.collection.name!r} was created before attributes were stored as places: "
            "write its images to a new one",
            field="filter.conditions",
        )
    latitude, longitude = (f'typed["{kind}"][{quoted(attribute)}]' for kind in ("latitude", "longitude"))
    meridians = f"({longitude} >= {area.west!r})", f"({longitude} <= {area.east!r})"
    between = (" or " if area.east < area.west else " and ").join(meridians)
    passes = f"({latitude} >= {area.south!r}) and ({latitude} <= {area.north!r}) and ({between})"
    return f"(not (exists {latitude})) or (not ({passes}))" if negate else passes


def _behind(prefix: str) -> str:
    """The first text after all that begin with a prefix; "" if it does not exist."""
    for end in range(len(prefix), 0, -1):
        following = ord(prefix[end - 1]) + 1
        if following <= sys.maxunicode:
            return prefix[: end - 1] + chr(0xE000 if 0xD800 <= following < 0xE000 else following)
    return ""
