"""Places on the earth as values of attributes, and areas that they may be in.

A value is a place when it is written as latitude and longitude in decimal degrees, such as "59.91,10.75".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EARTH_RADIUS_M = 6_371_008.8
_NUMBER = r"([+-]?\d{1,3}(?:\.\d*)?)"
_PLACE = re.compile(rf"\s*{_NUMBER}\s*,\s*{_NUMBER}\s*", re.ASCII)

Degrees = NDArray[np.float64]


def place_of(value: str) -> tuple[float, float] | None:
    """Latitude and longitude that a value is written as, in degrees; None for what is not a place."""
    found = _PLACE.fullmatch(value)
    if found is None:
        return None
    latitude, longitude = float(found[1]), float(found[2])
    return (latitude, longitude) if abs(latitude) <= 90.0 and abs(longitude) <= 180.0 else None


@dataclass(frozen=True, slots=True)
class Circle:
    """All places within a distance of its centre, in meters on a sphere; degrees."""

    latitude: float
    longitude: float
    radius_m: float

    def contains(self, latitude: Degrees, longitude: Degrees) -> NDArray[np.bool_]:
        """Which of the places are inside."""
        here, there = np.radians(self.latitude), np.radians(latitude)
        apart = np.sin(np.radians(longitude - self.longitude) / 2.0) ** 2
        haversine = np.sin((there - here) / 2.0) ** 2 + np.cos(here) * np.cos(there) * apart
        distance = 2.0 * EARTH_RADIUS_M * np.arcsin(np.sqrt(np.clip(haversine, 0.0, 1.0)))
        return np.asarray(distance <= self.radius_m)


@dataclass(frozen=True, slots=True)
class GeoBox:
    """All places between two parallels, and from west to east, over the date line too; degrees."""

    south: float
    west: float
    north: float
    east: float

    @property
    def width(self) -> float:
        """Degrees from west to east, 0 to 360."""
        return self.east - self.west + (0.0 if self.east >= self.west else 360.0)

    def contains(self, latitude: Degrees, longitude: Degrees) -> NDArray[np.bool_]:
        """Which of the places are inside."""
        return np.asarray(
            (latitude >= self.south)
            & (latitude <= self.north)
            & ((longitude - self.west) % 360.0 <= self.width)
        )


Area = Circle | GeoBox


def inside(values: Sequence[str], area: Area) -> list[str]:
    """The values that are places in the area."""
    found = [(value, place) for value in values if (place := place_of(value)) is not None]
    places = np.array([place for _, place in found], np.float64).reshape(-1, 2)
    passing = area.contains(places[:, 0], places[:, 1])
    return [value for (value, _), passes in zip(found, passing.tolist(), strict=True) if passes]
