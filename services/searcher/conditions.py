"""Conditions of filters on tags and on the values of attributes.

Attributes are stored as text. A range compares those values that are written as a number, or as a time, an
area those that are written as a place; no other value is in it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from services.searcher.geo import Area, inside

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([Tt ].+)?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def number_of(value: str) -> float | None:
    """The number that a value is written as, in decimal notation; None for others and for too large ones."""
    if not _NUMBER.fullmatch(value):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def time_of(value: str) -> float | None:
    """Milliseconds since 1970 of a date or time after ISO 8601, in UTC unless it says otherwise; or None."""
    if not _DATE.fullmatch(value):
        return None
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        return None
    time = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    return (time - _EPOCH).total_seconds() * 1000.0


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds that are set must hold."""

    gte: float | None = None
    gt: float | None = None
    lte: float | None = None
    lt: float | None = None

    def contains(self, number: float | None) -> bool:
        """Whether there is a number, and it is inside."""
        return (
            number is not None
            and (self.gte is None or number >= self.gte)
            and (self.gt is None or number > self.gt)
            and (self.lte is None or number <= self.lte)
            and (self.lt is None or number < self.lt)
        )

    def signs(self) -> list[tuple[str, float]]:
        """The bounds that are set, with their signs."""
        bounds = ((">=", self.gte), (">", self.gt), ("<=", self.lte), ("<", self.lt))
        return [(sign, bound) for sign, bound in bounds if bound is not None]


@dataclass(frozen=True, slots=True)
class ValueTest:
    """A test of an attribute's value; without any of these there has to be one.

    Attributes:
        values: It is one of these.
        prefix: It begins so.
        number: It is a number in this range.
        time: It is a time in this range, milliseconds since 1970.
        area: It is a place in this area.
    """

    values: tuple[str, ...] = ()
    prefix: str = ""
    number: Range | None = None
    time: Range | None = None
    area: Area | None = None

    def passes(self, value: str) -> bool:
        """Whether a value passes."""
        return (
            (not self.values or value in self.values)
            and value.startswith(self.prefix)
            and (self.number is None or self.number.contains(number_of(value)))
            and (self.time is None or self.time.contains(time_of(value)))
            and (self.area is None or bool(inside([value], self.area)))
        )


@dataclass(frozen=True, slots=True)
class Condition:
    """A tag of the image, or an attribute of the record or else of its image.

    Attributes:
        tag: The tag; "" for a condition on an attribute.
        attribute: The attribute's name.
        test: The test of its value.
        negate: Whether the test must fail.
    """

    tag: str = ""
    attribute: str = ""
    test: ValueTest = ValueTest()
    negate: bool = False


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one of the conditions holds; with `negate` none does."""

    conditions: tuple[Condition, ...]
    negate: bool = False
