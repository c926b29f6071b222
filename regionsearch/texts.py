"""What of a text is there to be seen: the one cleaning of everything that is searched for."""

from __future__ import annotations

import re
import unicodedata

import idna

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
