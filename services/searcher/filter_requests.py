"""Filters in requests, read into conditions of the engines."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from regionsearch.errors import invalid, too_large
from regionsearch.v1 import search_pb2
from services.searcher.conditions import AnyOf, Condition, Range, ValueTest
from services.searcher.geo import Area, Circle, GeoBox
from services.searcher.queries import Filter
from services.searcher.settings import LimitSettings

_LISTS = ("image_ids", "exclude_image_ids", "region_ids", "exclude_region_ids", "tags", "exclude_tags")


class FilterReader:
    """Reads filters within limits.

    Args:
        limits: What a call may ask for.

    Every method raises INVALID_ARGUMENT or TOO_LARGE, naming the field.
    """

    def __init__(self, limits: LimitSettings) -> None:
        self.limits = limits

    def filter(self, message: search_pb2.Filter, field: str = "filter") -> Filter:
        """Conditions of a search or deletion."""
        for name in _LISTS:
            self.at_most(f"{field}.{name}", len(getattr(message, name)), "max_filter_values")
        self.at_most(f"{field}.attributes", len(message.attributes), "max_filter_attributes")
        bounds = given(message, "min_area", "max_area", "min_predicted_iou", "min_stability_score")
        for name, bound in bounds.items():
            if not math.isfinite(bound):
                raise invalid(f"{field}.{name}", f"{field}.{name} must be a finite number")
        times: dict[str, Any] = {
            f"{name}_ms": milliseconds(time, f"{field}.{name}")
            for name, time in given(message, "created_after", "created_before").items()
        }
        lists: dict[str, Any] = {
            name.replace("region", "record"): tuple(getattr(message, name)) for name in _LISTS
        }
        return Filter(
            **lists,
            **bounds,
            **times,
            attributes=tuple(sorted(message.attributes.items())),
            conditions=self.conditions(message, field),
        )

    def conditions(self, message: search_pb2.Filter, field: str) -> tuple[AnyOf, ...]:
        """The conditions of a filter."""
        every = [test for one in message.conditions for test in (one, *one.any_of)]
        self.at_most(f"{field}.conditions", len(every), "max_filter_attributes")
        read: list[AnyOf] = []
        for number, one in enumerate(message.conditions):
            place = f"{field}.conditions[{number}]"
            if not one.any_of:
                read.append(AnyOf((self._condition(one, place),)))
                continue
            if {part.name for part, _ in one.ListFields()} - {"any_of", "negate"}:
                raise invalid(place, f"{place}: next to any_of only negate can be set")
            tests = tuple(self._condition(test, f"{place}.any_of[{i}]") for i, test in enumerate(one.any_of))
            read.append(AnyOf(tests, one.negate))
        return tuple(read)

    def _condition(self, message: search_pb2.Condition, field: str) -> Condition:
        if message.any_of:
            raise invalid(field, f"{field}: any_of cannot be nested; combine the conditions of the filter")
        if bool(message.tag) == bool(message.attribute):
            raise invalid(field, f"{field} must have either a tag or an attribute")
        tests = [name for name in ("number", "time", "near", "inside") if message.HasField(name)]
        tests += [name for name in ("values", "prefix") if getattr(message, name)]
        if len(tests) > 1 or (tests and message.tag):
            raise invalid(
                field,
                f"{field} can have one of values, prefix, number, time, near and inside, for an attribute",
            )
        self.at_most(f"{field}.values", len(message.values), "max_filter_values")
        self.texts(field, [message.tag, message.attribute, message.prefix, *message.values])
        number, time = (
            _range(getattr(message, name), f"{field}.{name}") if name in tests else None
            for name in ("number", "time")
        )
        area: Area | None = None
        if message.HasField("near"):
            area = _circle(message.near, f"{field}.near")
        elif message.HasField("inside"):
            area = _box(message.inside, f"{field}.inside")
        test = ValueTest(tuple(message.values), message.prefix, number, time, area)
        return Condition(message.tag, message.attribute, test, message.negate)

    def texts(self, field: str, texts: Iterable[str]) -> None:
        """Refuses texts that are too long, or cannot be stored."""
        for text in texts:
            self.at_most(field, len(text.encode()), "max_text_bytes")
            no_nul(field, text)

    def at_most(self, field: str, count: int, setting: str) -> None:
        """Refuses a count over the limit that a setting names."""
        limit = getattr(self.limits, setting)
        if count > limit:
            raise too_large(
                field, f"{field}: {count} is over the limit of {limit} (setting limits.{setting})"
            )


def given(message: Message, *names: str) -> dict[str, Any]:
    """The fields among these that a message has, by name."""
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def _range(message: search_pb2.NumberRange | search_pb2.TimeRange, field: str) -> Range:
    """Bounds; those of times in milliseconds since 1970."""
    bounds = {
        part.name: _nanoseconds(bound, f"{field}.{part.name}") / 1e6
        if isinstance(bound, Timestamp)
        else bound
        for part, bound in message.ListFields()
    }
    if not bounds or not all(map(math.isfinite, bounds.values())):
        raise invalid(field, f"{field} needs at least one of gte, gt, lte and lt, each finite")
    return Range(**bounds)


def _circle(message: search_pb2.GeoCircle, field: str) -> Circle:
    _check_degrees(field, latitude=message.latitude, longitude=message.longitude)
    if not 0.0 < message.radius_m < math.inf:
        raise invalid(f"{field}.radius_m", f"{field}.radius_m must be a number of meters above 0")
    return Circle(message.latitude, message.longitude, message.radius_m)


def _box(message: search_pb2.GeoBox, field: str) -> GeoBox:
    _check_degrees(field, south=message.south, west=message.west, north=message.north, east=message.east)
    if message.south > message.north:
        raise invalid(f"{field}.south", f"{field}.south cannot be above {field}.north")
    return GeoBox(message.south, message.west, message.north, message.east)


def _check_degrees(field: str, **degrees: float) -> None:
    for name, value in degrees.items():
        most = 180.0 if name in ("longitude", "west", "east") else 90.0
        if not abs(value) <= most:  # NaN fails too
            raise invalid(f"{field}.{name}", f"{field}.{name} is in degrees, from -{most:g} to {most:g}")


def no_nul(field: str, text: str) -> None:
    """Refuses a text with a NUL character."""
    if "\0" in text:  # SQLite would take it for the end of the text
        raise invalid(field, f"{field} holds a NUL character: leave it out")


def milliseconds(timestamp: Timestamp, field: str) -> int:
    """Milliseconds since 1970."""
    # Rounded up: the stored times are whole milliseconds, so `t >= x` and `t < x` keep their meaning.
    return -(-_nanoseconds(timestamp, field) // 1_000_000)


def _nanoseconds(timestamp: Timestamp, field: str) -> int:
    try:
        return timestamp.ToNanoseconds()
    except ValueError as error:
        raise invalid(field, f"{field} must be a time in the years 1 to 9999: {error}") from error
