"""JSON that strangers send: bounded before an object is made of it, its image files left where they are.

An image in base64 may be as large as the limit of images. Everything else in a body is small, and there is
little of it. So images are cut out of the bytes first, which costs no more than finding their quotes, and
only what is left is parsed.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Any, NoReturn

from regionsearch.errors import invalid, too_large

MAX_SMALL = 1 << 20
"""Bytes of everything in a body that is not an image."""

_MAX_VALUES = 50_000  # in one document; to check as many points takes 50 ms, in which no other thread runs
_MAX_MEMBERS = 256  # of one object
_MAX_NAME = 4096  # characters of a member's name

_VALUE = re.compile(rb'"\s*:\s*(\[\s*)?"')  # from the end of a name to its image, or to its first one
_NEXT = re.compile(rb'\s*,\s*"')
_NAME = b'"image'


def parse_json(data: bytes | bytearray, field: str = "body") -> Any:
    """The value of a JSON document in which every image is a memoryview of its base64.

    Images are the strings called ``image`` and those in lists called ``images``, wherever they are.

    Args:
        data: The document in UTF-8. UTF-16 and UTF-32 are read, too, if there are no images.
        field: Name of the document in errors.

    Raises:
        RegionSearchError: TOO_LARGE when it is too much without the images, INVALID_ARGUMENT for what is
            not JSON, and for objects with too many names, a name twice, or one that UTF-8 does not have.
    """
    rest, images = _cut_images_out(data, field)
    if sum(rest.count(sign) for sign in b"[{,") > _MAX_VALUES:
        raise too_large(field, f"{field} has more than {_MAX_VALUES} values; send fewer in one request")

    def read_object(members: list[tuple[str, Any]]) -> dict[str, Any]:
        values = _checked_object(members, field)
        if images:
            if isinstance(mark := values.get("image"), str):
                values["image"] = images.get(mark, mark)
            if isinstance(marks := values.get("images"), list):
                values["images"] = [images.get(m, m) if isinstance(m, str) else m for m in marks]
        return values

    try:
        return json.loads(rest, object_pairs_hook=read_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise invalid(field, f"{field} is not valid JSON: it is nested too deeply") from None
    except ValueError as error:
        raise invalid(field, f"{field} is not valid JSON ({error})") from None


def _cut_images_out(data: bytes | bytearray, field: str) -> tuple[bytes, dict[str, memoryview]]:
    """The document with a mark in place of each image, and the images by their marks."""
    view = memoryview(data)
    nonce = secrets.token_hex(16)  # so that no caller can send a mark
    images: dict[str, memoryview] = {}
    kept: list[bytes | memoryview] = []
    size = done = 0

    def keep(until: int) -> None:
        nonlocal size, done
        _check_small(size + until - done, field)
        kept.append(view[done:until])
        size, done = size + until - done, until

    name = data.find(_NAME)
    while name >= 0:
        _check_small(size + name - done, field)
        plural = data.startswith(b"s", name + len(_NAME))
        after = name + len(_NAME) + plural
        begin = _VALUE.match(data, after, after + _MAX_NAME)
        if data.endswith(b"\\", 0, name):  # the quote is one of a longer name
            begin = None
        while begin is not None and (begin.re is _NEXT or bool(begin[1]) is plural):
            start = begin.end()
            end = data.find(b'"', start)
            if end < 0 or data.endswith(b"\\", start, end):
                break  # no image has a quote in it; what is wrong is said by the parser
            keep(start)
            mark = f"{nonce}{len(images)}"
            kept.append(mark.encode())
            size += len(mark)
            images[mark] = view[start:end]
            done, after = end, end + 1
            begin = _NEXT.match(data, end + 1, end + _MAX_NAME) if plural else None
        name = data.find(_NAME, after)
    keep(len(data))
    return b"".join(kept), images


def _check_small(size: int, field: str) -> None:
    if size > MAX_SMALL:
        raise too_large(field, f"{field} has more than {MAX_SMALL} bytes excluding its images; send less")


def _checked_object(members: list[tuple[str, Any]], field: str) -> dict[str, Any]:
    if len(members) > _MAX_MEMBERS:
        raise too_large(field, f"{field}: an object has more than {_MAX_MEMBERS} members; send fewer")
    for name, _ in members:
        if len(name) > _MAX_NAME or not is_utf8(name):
            raise invalid(field, f"{field}: a name in an object is too long, or holds half a character")
    values = dict(members)
    if len(values) < len(members):
        raise invalid(field, f"{field}: a name comes twice in one object; send it once")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def is_utf8(text: str) -> bool:
    """Whether all of a text can be written in UTF-8: JSON can say halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
