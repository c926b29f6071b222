"""How long a batch of a given size takes, as far as the batches so far tell."""

from __future__ import annotations

FORGET = 0.95  # what a batch weighs after the next one: some twenty count
EMPTY = 0.01  # what an empty batch that took no time weighs: little, where sizes differ


class BatchTimes:
    """A line through the recent batches: seconds that any batch costs, and seconds of each of its items.

    An empty batch that took no time is one of them. So while all batches were of one size, time is
    taken to grow with the size: what is admitted then too little, until a larger batch has run, can be sent
    again, while what is admitted too much would wait in vain.

    One thread learns; others may ask.
    """

    def __init__(self) -> None:
        self._mean = self._fixed = self._item = 0.0
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    @property
    def mean(self) -> float:
        """Seconds of a batch, over the recent ones; 0 until the first."""
        return self._mean

    def learn(self, items: int, seconds: float) -> None:
        """Counts a batch."""
        self._weight = self._weight * FORGET + 1
        self._x = self._x * FORGET + items
        self._y = self._y * FORGET + seconds
        self._xx = self._xx * FORGET + items * items
        self._xy = self._xy * FORGET + items * seconds
        weight = self._weight + EMPTY
        slope = (weight * self._xy - self._x * self._y) / (weight * self._xx - self._x**2)
        self._mean = self._y / self._weight
        self._item = min(max(slope, 0.0), self._y / self._x)
        self._fixed = (self._y - self._item * self._x) / self._weight

    def expect(self, items: int, max_batch: int) -> float:
        """Seconds that items take in full batches, the last of them by its part; 0 until the first."""
        return items * (self._fixed / max_batch + self._item)
