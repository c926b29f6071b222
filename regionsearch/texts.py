"""Texts: what of them is there to be seen, and how much may be said about one image."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import idna

from regionsearch.errors import invalid, too_large

# Control characters other than white space, and what Unicode calls Default_Ignorable_Code_Point: soft
# hyphens, zero-width spaces and joiners, marks of direction, fillers, variation selectors. The blank of
# Braille draws nothing either. A flag made of tags is found first, and stays.
_FLAG = "\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f"
_INVISIBLE = (
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_FOUND = re.compile(f"{_FLAG}|{_INVISIBLE}")

_NON_JOINER, _JOINER, _TEXT_STYLE, _EMOJI_STYLE, _KEYCAP = "\u200c", "\u200d", "\ufe0e", "\ufe0f", "\u20e3"
_CONTEXT = 16  # characters around a joiner that are looked at: marks lie between letters


def visible_text(text: str) -> str:
    """A text without its invisible characters, which would change its vector.

    Emoji keep what makes them one: joiners between two of them, their variation selectors, the tags of a
    flag. Joiners and non-joiners stay where they shape letters, as in Persian and Hindi (RFC 5892, appendix
    A). White space stays, for tokenizers look at it themselves; a text of which nothing but white space is
    left is empty (``not visible_text(text).strip()``).
    """
    return _FOUND.sub(_kept, text)


def _kept(match: re.Match[str]) -> str:
    found, text = match[0], match.string
    before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
    if found in (_NON_JOINER, _JOINER):
        emoji = (before == _EMOJI_STYLE or _is(before, "So", "Sk")) and _is(after, "So")
        return found if _shapes_letters(text, match.start()) or (emoji and found == _JOINER) else ""
    if found in (_TEXT_STYLE, _EMOJI_STYLE):
        return found if after == _KEYCAP or _is(before, "So", "Sm") else ""
    return found if len(found) > 1 else ""


def _shapes_letters(text: str, place: int) -> bool:
    start = max(0, place - _CONTEXT)
    try:
        return idna.valid_contextj(text[start : place + _CONTEXT], place - start)
    except ValueError:  # next to a character without a name
        return False


def _is(char: str, *categories: str) -> bool:
    return bool(char) and unicodedata.category(char) in categories


@dataclass(frozen=True, slots=True)
class MetadataLimits:
    """Limits of the tags and attributes of one image, or of the attributes of one record.

    Every image of a list, and of a page of hits, carries its tags: what one writer may store decides how much
    all readers are sent.

    Attributes:
        tags: Most tags.
        attributes: Most attributes.
        text_bytes: Longest tag, attribute name or attribute value, in UTF-8 bytes.
        total_bytes: UTF-8 bytes of all tags, attribute names and attribute values together.
    """

    tags: int
    attributes: int
    text_bytes: int
    total_bytes: int

    def check(self, tags: Iterable[str], attributes: Mapping[str, str], field: str = "") -> None:
        """Refuses what is over a limit, or cannot be stored.

        Args:
            tags: The image's tags, each once.
            attributes: Its attributes.
            field: Prefix of the field in the request, such as ``images[2].``; "" for none.

        Raises:
            RegionSearchError: TOO_LARGE, or INVALID_ARGUMENT; both name the field.
        """
        tags = list(tags)
        texts = [*attributes.keys(), *attributes.values()]
        for name, count, limit, setting in (
            ("tags", len(tags), self.tags, "max_tags"),
            ("attributes", len(attributes), self.attributes, "max_attributes"),
        ):
            if count > limit:
                raise too_large(
                    field + name, f"{field}{name}: {count} is over the limit of {limit} (limits.{setting})"
                )
        total = 0
        for name, values in (("tags", tags), ("attributes", texts)):
            for text in values:
                self._check_text(field + name, text)
                total += len(text.encode())
        if total > self.total_bytes:
            name = "tags" if sum(len(tag.encode()) for tag in tags) * 2 >= total else "attributes"
            raise too_large(
                field + name,
                f"{field}{name}: tags and attributes have {total} bytes together, over the limit of "
                f"{self.total_bytes} for one image (limits.max_metadata_bytes)",
            )
        if "" in tags or "" in attributes:
            name = "tags" if "" in tags else "attributes"
            raise invalid(field + name, f"{field}{name}: a tag or an attribute's name cannot be empty")

    def _check_text(self, field: str, text: str) -> None:
        try:
            size = len(text.encode())
        except UnicodeEncodeError:  # JSON can spell halves of characters
            raise invalid(field, f"{field} holds a character that UTF-8 cannot represent") from None
        if size > self.text_bytes:
            raise too_large(
                field, f"{field}: {size} bytes is over the limit of {self.text_bytes} (limits.max_text_bytes)"
            )
        if "\0" in text:
            raise invalid(field, f"{field} holds a NUL character: leave it out")
