"""Image files in JSON: base64, decoded in slices."""

from __future__ import annotations

import binascii
import json

_SLICE = 1 << 20  # bytes that are decoded at once: no other thread runs meanwhile


def decode_base64(text: memoryview | bytes) -> bytes:
    """The bytes that a JSON string of base64 stands for.

    Args:
        text: What stands between the quotes, escapes and all. Line breaks and spaces mean nothing, and it may
            begin with ``data:…,``.

    Raises:
        ValueError: It is not valid base64.
    """
    view = memoryview(text)
    parts: list[bytes] = []
    left = b""  # characters that are not a group of four yet
    ended = False
    start = 0
    while start < len(view):
        piece = bytes(view[start : start + _SLICE])
        if start + _SLICE < len(view) and (escape := piece.rfind(b"\\", len(piece) - 5)) > 0:
            piece = piece[:escape]  # the next slice begins with this escape
        first, start = start == 0, start + len(piece)
        if b"\\" in piece:
            piece = json.loads(b'"' + piece + b'"').encode("ascii")
        if first and piece.startswith(b"data:"):
            piece = piece.partition(b",")[2]
        piece = left + piece.translate(None, b" \t\r\n")
        if ended and piece:
            raise ValueError("something follows the padding")
        whole = len(piece) // 4 * 4
        parts.append(binascii.a2b_base64(piece[:whole], strict_mode=True))
        left, ended = piece[whole:], piece.endswith(b"=")
    if left:
        raise ValueError("the last group of four characters is not complete")
    return b"".join(parts)
