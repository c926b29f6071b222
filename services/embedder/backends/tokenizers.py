"""From texts to token ids: templates, then CLIP's own tokenizer or one of the Hugging Face hub."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import open_clip
import torch
from torch import Tensor

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.models.store import find_hub_file

# Letters of a word, and of a text for each token, that are read. Longer tokens do not exist, and the time
# that CLIP's tokenizer takes for a word grows with the square of its length: 10,000 letters took 40 s.
WORD_LETTERS, TOKEN_LETTERS = 256, 32
WORDS_KEPT = 100_000


class Tokenizer(Protocol):
    """What a backend needs of a tokenizer."""

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, list[bool]]:
        """Token ids (N, context), and for each text whether its end was cut off."""


class ClipTokenizer:
    """CLIP's byte pair encoding, which is part of open_clip.

    Args:
        context: Tokens that the model reads.
        options: Arguments of ``open_clip.SimpleTokenizer``.
    """

    def __init__(self, context: int, options: dict[str, Any]) -> None:
        self._context = context
        self._tokenizer = open_clip.SimpleTokenizer(context_length=context, **options)
        self._special = dict(self._tokenizer.cache)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, list[bool]]:
        """See :class:`Tokenizer`."""
        short = [_shorten(text, self._context) for text in texts]
        longer = self._tokenizer(short, context_length=self._context + 1)
        ends = longer[:, -1].clone()  # the end mark of what does not fit, else padding
        tokens = longer[:, :-1].contiguous()
        tokens[:, -1] = torch.where(ends > 0, ends, tokens[:, -1])
        if len(self._tokenizer.cache) > WORDS_KEPT:  # it keeps every word that it has ever seen
            self._tokenizer.cache = dict(self._special)
        cut = zip(ends.tolist(), texts, short, strict=True)
        return tokens, [bool(end) or text != less for end, text, less in cut]


class HubTokenizer:
    """A tokenizer of the Hugging Face hub, from files on this machine.

    Args:
        name: Repository on the hub, or a folder that holds its files.
        context: Tokens that the model reads.
        mode: open_clip's ``tokenizer_mode``.
        options: Arguments of ``open_clip.tokenizer.HFTokenizer``.

    Raises:
        RegionSearchError: FAILED_PRECONDITION when transformers is not installed, NOT_FOUND when the files
            are not there, DATA_LOSS when they cannot be read.
    """

    def __init__(self, name: str, context: int, mode: str | None, options: dict[str, Any]) -> None:
        need_transformers()
        folder = hub_folder(name, "tokenizer_config.json")
        try:
            self._tokenizer = open_clip.tokenizer.HFTokenizer(
                str(folder), context_length=context, tokenizer_mode=mode, **options
            )
        except Exception as error:  # readers raise whatever damaged files lead them to
            raise RegionSearchError(
                Kind.DATA_LOSS,
                f"{folder} does not hold a tokenizer that can be read ({_first_line(error)}); pull the model "
                "again",
                field="model",
            ) from error
        self._context = context
        self._clips = mode == "clips"
        self._alone = threading.Lock()  # the tokenizer keeps the length of a call in itself

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, list[bool]]:
        """See :class:`Tokenizer`."""
        short = [_shorten(text, self._context) for text in texts]
        with self._alone:
            tokens: Tensor = self._tokenizer(short)
            cleaned = [self._tokenizer.clean_fn(text) for text in short]
            ids = self._tokenizer.tokenizer(
                cleaned, add_special_tokens=not self._clips, truncation=True, max_length=self._context + 1
            ).input_ids
        room = self._context - 3 if self._clips else self._context  # begin, end and class are added to these
        return tokens, [
            len(some) > room or text != less for some, text, less in zip(ids, texts, short, strict=True)
        ]


def load_tokenizer(text: dict[str, Any]) -> Tokenizer:
    """The tokenizer that a model's configuration names.

    Args:
        text: open_clip's ``text_cfg``.

    Raises:
        RegionSearchError: As :class:`HubTokenizer` does.
    """
    context, options = text.get("context_length", 77), text.get("tokenizer_kwargs") or {}
    if "hf_tokenizer_name" in text:
        return HubTokenizer(text["hf_tokenizer_name"], context, text.get("tokenizer_mode"), options)
    return ClipTokenizer(context, options)


def need_transformers() -> None:
    """Checks that the package behind models and tokenizers of the Hugging Face hub is installed.

    Raises:
        RegionSearchError: FAILED_PRECONDITION when it is not.
    """
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION,
            "this model's tokenizer is one of the Hugging Face hub and needs the package transformers: "
            "pip install 'regionsearch[hf]'",
            field="model",
        ) from error


def hub_folder(name: str, file: str) -> Path:
    """The folder on this machine with the files of a repository of the hub; nothing is downloaded.

    Args:
        name: The repository, or the folder itself.
        file: What has to be in it.

    Raises:
        RegionSearchError: NOT_FOUND when it is not there; says how to get it.
    """
    if (Path(name) / file).is_file():
        return Path(name)
    found = find_hub_file(name, file)
    if found is None:
        raise RegionSearchError(
            Kind.NOT_FOUND,
            f"the files of {name}, which this model needs, are not there ({file}); get them with: "
            "regionsearch models pull open_clip:NAME:TAG, or huggingface-cli download",
            field="model",
        )
    return found.parent


def _shorten(text: str, context: int) -> str:
    """As much of a text as a model can read, and a little more; texts of ordinary length are left alone."""
    if len(text) <= WORD_LETTERS:
        return text
    less = " ".join(word[:WORD_LETTERS] for word in text.split())[: TOKEN_LETTERS * context]
    return text if less == " ".join(text.split()) else less


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
