"""The classes of the training world and the words for them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from training.captions import describe_thing

UNNAMED = -1  # in the place of a class: a thing without a name


@dataclass
class Vocabulary:
    """The classes of the training world and the words for them.

    Attributes:
        keywords: CLDR keywords of every name.
    """

    keywords: dict[str, tuple[str, ...]]
    names: list[str] = field(init=False)
    index: dict[str, int] = field(init=False)
    synonyms: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.names = sorted(self.keywords)
        self.index = {name: i for i, name in enumerate(self.names)}
        uses = Counter(word for words in self.keywords.values() for word in set(words))
        # A keyword that only one thing has means that thing; the others ("animal", "face") are too broad.
        self.synonyms = {
            name: [w for w in words if uses[w] == 1 and w not in self.keywords]
            for name, words in self.keywords.items()
        }

    def describe(self, rng: np.random.Generator, name: str) -> str:
        """A random way to ask for a thing."""
        others = self.synonyms[name]
        if others and rng.random() < 0.12:
            return describe_thing(rng, others[int(rng.integers(len(others)))])
        return describe_thing(rng, name, self.keywords[name])
