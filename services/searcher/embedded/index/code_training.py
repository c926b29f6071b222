"""How the head of learned binary codes is trained on a collection's own vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.searcher.types import Vectors

_SEED = 20_111
_STEPS, _BATCH = 800, 256
_RATE, _DECAY = 0.01, (0.9, 0.999)  # of Adam
_TEMPERATURE = 0.05


def train_head(
    start: NDArray[np.float32], bits: int, sample: Vectors
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Trains ``h = tanh(W x + b)`` so that codes have the neighbours that vectors have.

    Within a batch, each vector's neighbours are a softmax of its cosines with the others over a temperature,
    and those of its code a softmax of ``h h' / bits``; the loss is the mean Kullback-Leibler divergence
    (stochastic neighbour embedding, Hinton and Roweis 2002). Unlike a loss of the differences of all cosines
    it spends the bits on the nearest ones. The result is the average over the second half of the steps.

    Args:
        start: Weights to begin with, such as a PCA's, shape (at most bits, dimension); further ones are
            random.
        bits: Length of the codes.
        sample: Unit vectors to learn from, shape (rows, dimension).

    Returns:
        W, shape (bits, dimension), and b, shape (bits,).
    """
    random = np.random.default_rng(_SEED)
    mean = sample.mean(axis=0)
    dimension = sample.shape[1]
    further = random.standard_normal((bits - len(start), dimension), np.float32) / np.sqrt(dimension)
    weight = np.concatenate([start, further], dtype=np.float32)
    weight /= np.maximum(((sample - mean) @ weight.T).std(axis=0), 1e-6)[:, np.newaxis]  # where tanh bends
    parts = [weight, np.zeros(bits, np.float32)]
    first, second, kept = [[np.zeros_like(part) for part in parts] for _ in range(3)]
    for step in range(1, _STEPS + 1):
        batch = sample[random.integers(0, len(sample), min(_BATCH, len(sample)))]
        x = batch - mean
        hidden = np.tanh(x @ parts[0].T + parts[1])
        difference = _neighbours(hidden @ hidden.T / bits) - _neighbours(batch @ batch.T)
        gradient = (difference + difference.T) @ hidden / (_TEMPERATURE * bits * len(x)) * (1 - hidden**2)
        rate = _RATE * (1 - (step - 1) / _STEPS)
        for i, change in enumerate((gradient.T @ x, gradient.sum(axis=0))):
            first[i] += (1 - _DECAY[0]) * (change - first[i])
            second[i] += (1 - _DECAY[1]) * (change**2 - second[i])
            direction = first[i] / (1 - _DECAY[0] ** step)
            parts[i] -= rate * direction / (np.sqrt(second[i] / (1 - _DECAY[1] ** step)) + 1e-12)
            if step > _STEPS // 2:
                kept[i] += parts[i] / (_STEPS - _STEPS // 2)
    return kept[0], kept[1] - kept[0] @ mean


def _neighbours(similarities: NDArray[np.float32]) -> NDArray[np.float32]:
    """How likely each row takes each other one for its neighbour; rows sum to 1."""
    exponents = similarities / np.float32(_TEMPERATURE)
    np.fill_diagonal(exponents, -np.inf)
    likely: NDArray[np.float32] = np.exp(exponents - exponents.max(axis=1, keepdims=True))
    likely /= likely.sum(axis=1, keepdims=True)
    return likely
