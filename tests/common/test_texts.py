"""What nobody sees does not change what is searched for."""

from __future__ import annotations

import pytest

from regionsearch.texts import visible_text


@pytest.mark.parametrize(
    "text",
    ["dog\u200b", "\u200edog", "do\u00adg", "\ufeffdog", "d\u2060og", "do\x00g", "dog\ufe0f", "d\u200dog",
     "do\u200cg", "\u200cdog\u200d", "dog\U000e0064", "\u202edog\u202c", "do\u034fg", "dog\u3164"],
)  # fmt: skip
def test_invisible_characters_are_left_out(text: str) -> None:
    assert visible_text(text) == "dog"


@pytest.mark.parametrize(
    "text",
    [
        "a red mug",
        "two\nlines\tand\u00a0more",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",  # a family: three emoji, joined
        "\u2764\ufe0f\u200d\U0001f525",  # a heart on fire
        "\U0001f469\U0001f3fd\u200d\U0001f52c",  # with a skin tone
        "1\ufe0f\u20e3",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # the flag of England
        "caf\u00e9 cafe\u0301 \u0645\u06cc",
        "\u0645\u06cc\u200c\u0631\u0648\u0645",  # Persian: I go, of two parts that are not joined
        "\u0645\u06cc\u0651\u200c\u0631\u0648\u0645",  # with a vowel's mark
        "\u0915\u094d\u200d\u0937",  # Hindi: a half form
        "\u0915\u094d\u200c\u0937",  # Hindi: not a ligature
        "\u0d28\u0d4d\u200d",  # Malayalam: a chillu
    ],
)
def test_what_can_be_seen_stays(text: str) -> None:
    assert visible_text(text) == text


def test_joiners_that_shape_nothing_are_left_out() -> None:
    assert visible_text("\u0645\u06cc\u200c") == "\u0645\u06cc"  # at the end of a word
    assert (
        visible_text("\u062f\u0648\u200c\u0686\u0631\u062e\u0647") == "\u062f\u0648\u0686\u0631\u062e\u0647"
    )


@pytest.mark.parametrize("text", ["", " ", "\u200b", "\u2800", "\u3164\u200d", "\u00ad\n", "\ufe0f"])
def test_a_text_of_nothing_visible_is_empty(text: str) -> None:
    assert not visible_text(text).strip()
