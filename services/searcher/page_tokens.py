"""Page tokens: where the next page begins, for which request, and in which state of the collection."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterable
from typing import Any, Protocol

from regionsearch.errors import RegionSearchError, invalid

_SIGNATURE_BYTES = 16
_MAX_LENGTH = 16_384  # two ids, each character up to 12 bytes in JSON, and a thousand numbers


class Key(Protocol):
    """Returns the key that signs tokens; see `Engine.token_key`."""

    def __call__(self, *, fresh: bool) -> bytes:
        """The key; read again where it has to be fresh."""
        ...


def fingerprint(request: bytes) -> str:
    """A digest of a request, which binds its page tokens to it."""
    return hashlib.sha256(request).hexdigest()[:16]


class PageTokens:
    """Signs and reads page tokens.

    Args:
        key: Gives the key of the signature.
    """

    def __init__(self, key: Key) -> None:
        self._key = key

    def encode(self, *parts: Any) -> str:
        """An opaque, signed token of JSON values; the first one is a fingerprint."""
        payload = json.dumps(parts, separators=(",", ":")).encode()
        signature = _signature(self._key(fresh=False), payload)
        return base64.urlsafe_b64encode(signature + payload).decode().rstrip("=")

    def decode(self, token: str, request_fingerprint: str, *types: type) -> list[Any]:
        """The values behind the fingerprint.

        Args:
            token: What `encode` made.
            request_fingerprint: That of the present request.
            types: Expected types of the values.

        Raises:
            RegionSearchError: INVALID_ARGUMENT for a token that is damaged or belongs to another request.
        """
        try:
            if len(token) > _MAX_LENGTH:
                raise ValueError("no token is that long")
            data = base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
        except ValueError as error:
            raise _refused("is damaged") from error
        signature, payload = data[:_SIGNATURE_BYTES], data[_SIGNATURE_BYTES:]
        if not any(
            hmac.compare_digest(signature, _signature(self._key(fresh=fresh), payload))
            for fresh in (False, True)
        ):
            raise _refused("is damaged, or was not made by this searcher")
        parts = json.loads(payload)
        if parts[0] != request_fingerprint:
            raise _refused("belongs to another request; repeat that one, changing nothing but the token")
        if [type(part) for part in parts[1:]] != list(types):
            raise _refused("is of another version; begin again with the first page")
        return list(parts[1:])


def pack(numbers: Iterable[int]) -> str:
    """Whole numbers from 0 on, in any order, as a short text."""
    packed, before = bytearray(), 0
    for number in sorted(numbers):
        step, before = number - before, number
        while step > 0x7F:
            packed.append(step & 0x7F | 0x80)
            step >>= 7
        packed.append(step)
    return base64.b85encode(bytes(packed)).decode()


def unpack(text: str) -> tuple[int, ...]:
    """Reads what `pack` has written, ascending."""
    numbers: list[int] = []
    step = shift = last = 0
    for byte in base64.b85decode(text):
        step |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            last += step
            numbers.append(last)
            step = shift = 0
    return tuple(numbers)


def _signature(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, payload, "sha256")[:_SIGNATURE_BYTES]


def _refused(why: str) -> RegionSearchError:
    return invalid("page_token", f"the page token {why}")
