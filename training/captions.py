"""Words for things and scenes: the phrases that the embedder learns from."""

from __future__ import annotations

import numpy as np

_TEMPLATES = (
    "{}",
    "{}",
    "{}",
    "a {}",
    "the {}",
    "a photo of a {}",
    "a photo of the {}",
    "a picture of a {}",
    "a drawing of a {}",
    "an image of a {}",
    "a small {}",
    "a big {}",
    "one {}",
    "find the {}",
    "a {} on a table",
    "a {} in the scene",
    "a close-up of a {}",
    "there is a {} in the picture",
)
_SCENE_TEMPLATES = ("{}", "{}", "a photo of {}", "a picture of {}", "a scene with {}", "there is {}")

ALL_WORDS = (
    *_TEMPLATES,
    *_SCENE_TEMPLATES,
    "a, an and",
)  # every word that a caption adds to names and keywords


def with_article(name: str) -> str:
    """``name`` with "a" or "an", or as it is when it reads as a plural."""
    if name.endswith("s") and not name.endswith(("ss", "us")):
        return name
    return f"{'an' if name[:1] in 'aeiou' else 'a'} {name}"


def list_things(names: list[str]) -> str:
    """The names as one phrase: ``"a dog, a chair and a red circle"``."""
    phrases = [with_article(name) for name in names]
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]]) if len(phrases) > 1 else "".join(phrases)


def describe_thing(rng: np.random.Generator, name: str, keywords: tuple[str, ...] = ()) -> str:
    """One of the ways to ask for a thing; now and then by one of its keywords added to the name."""
    words = (
        f"{name}, {keywords[int(rng.integers(len(keywords)))]}" if keywords and rng.random() < 0.15 else name
    )
    return _TEMPLATES[int(rng.integers(len(_TEMPLATES)))].format(words)


def describe_scene(rng: np.random.Generator, names: list[str]) -> str:
    """A caption for a whole scene that names some or all of its things, in any order."""
    shown = [names[i] for i in rng.permutation(len(names))[: int(rng.integers(1, min(len(names), 5) + 1))]]
    return _SCENE_TEMPLATES[int(rng.integers(len(_SCENE_TEMPLATES)))].format(list_things(shown))
