"""Vectors on a plane, so that what is alike lies together: a small relative of UMAP, without its library."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

NEIGHBOURS = 12
AWAY = 4  # points, drawn at random, that push one away for each neighbour that pulls it
EPOCHS = 150
_RATE = 0.3
_FURTHEST = 4.0  # of one pull or push
_ROWS = 512  # of similarities at once
_AMONG = 3  # known places that draw a new one between them
_SHARPNESS = 20.0  # of the weights by cosine


def project(vectors: Floats, seed: int = 0) -> Floats:
    """Places vectors on the unit square; the same vectors always in the same way.

    Neighbours by cosine pull each other, others push; places begin as the two principal components. Takes a
    second for 2,000 vectors.

    Args:
        vectors: (n, d), of length one.
        seed: Of what is drawn at random.

    Returns:
        (n, 2) in 0 to 1; in the middle where there is one vector, or all are the same.
    """
    count = len(vectors)
    centred = vectors - vectors.mean(axis=0, keepdims=True) if count else vectors
    if count < 2 or not np.abs(centred).max() > 1e-6:
        return np.full((count, 2), 0.5, np.float32)
    draw = np.random.default_rng(seed)
    places = _principal(centred, draw)
    places += draw.normal(0, 0.01, places.shape).astype(np.float32)  # the same vectors do not stay together
    if count > 3:
        places = _relaxed(places, _neighbours(centred, min(NEIGHBOURS, count - 1)), draw)
    places -= places.min(axis=0)
    spread = places.max()
    places /= spread if spread > 0 else 1
    middle: Floats = places + (1 - places.max(axis=0)) / 2
    return middle


def placed_among(vectors: Floats, places: Floats) -> Floats:
    """Places new vectors among those that have a place, which stay where they are.

    Args:
        vectors: (n, d), of length one.
        places: (n, 2), NaN for those that have none yet; at least one has.

    Returns:
        (n, 2). A new vector lies between the known ones that are most like it, nearest to the first of them.
    """
    known, new = np.flatnonzero(~np.isnan(places[:, 0])), np.flatnonzero(np.isnan(places[:, 0]))
    found = places.copy()
    for start in range(0, len(new), _ROWS):
        rows = new[start : start + _ROWS]
        cosines = vectors[rows] @ vectors[known].T
        near = np.argpartition(-cosines, min(_AMONG, len(known)) - 1, axis=1)[:, :_AMONG]
        weights = np.exp(_SHARPNESS * np.take_along_axis(cosines, near, axis=1))
        weights /= weights.sum(axis=1, keepdims=True)
        found[rows] = (weights[..., None] * places[known][near]).sum(axis=1)
    return found


def _principal(centred: Floats, draw: np.random.Generator) -> Floats:
    """The first two principal components, (n, 2), spread to 10; by iteration on a few directions."""
    directions = draw.normal(size=(centred.shape[1], 6)).astype(np.float32)
    for _ in range(8):
        directions, _ = np.linalg.qr(centred.T @ (centred @ directions))
    values = centred @ directions
    _, rotation = np.linalg.eigh(values.T @ values)
    flat = values @ rotation[:, : -min(2, rotation.shape[1]) - 1 : -1]
    flat = np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
    scaled: Floats = (flat * (10 / max(float(np.abs(flat).max()), 1e-9))).astype(np.float32)
    return scaled


def _neighbours(centred: Floats, count: int) -> NDArray[np.intp]:
    """For each vector, the indices of those of the highest cosine, (n, count), without itself."""
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)
    found = np.empty((len(unit), count), np.intp)
    for start in range(0, len(unit), _ROWS):
        cosines = unit[start : start + _ROWS] @ unit.T
        cosines[np.arange(len(cosines)), np.arange(start, start + len(cosines))] = -2
        found[start : start + _ROWS] = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
    return found


def _relaxed(places: Floats, neighbours: NDArray[np.intp], draw: np.random.Generator) -> Floats:
    """The places after neighbours have pulled each other, and others pushed."""
    count, near = neighbours.shape
    to = neighbours.ravel()
    for epoch in range(EPOCHS):
        apart = places[:, None] - places[neighbours]
        pull = _bounded(apart * (-2 / (1 + (apart**2).sum(axis=2, keepdims=True))))
        force = pull.sum(axis=1)
        for axis in (0, 1):  # those that are pulled back
            force[:, axis] -= np.bincount(to, pull[:, :, axis].ravel(), count)
        apart = places[:, None] - places[draw.integers(0, count, (count, near * AWAY))]
        square = (apart**2).sum(axis=2, keepdims=True)
        force += _bounded(apart * (2 / ((0.01 + square) * (1 + square)))).sum(axis=1)
        places = places + np.float32(_RATE * (1 - epoch / EPOCHS) / near) * force
    return places


def _bounded(force: Floats) -> Floats:
    return np.clip(force, -_FURTHEST, _FURTHEST)
