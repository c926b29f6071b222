"""What is kept of an idempotency key with the images that its request makes, and whose it is."""

from __future__ import annotations

from collections.abc import Mapping

from regionsearch.errors import Kind, RegionSearchError

IDEMPOTENCY_KEY = "_idempotency_key"
"""Attribute that keeps the key of the request that made an image."""
IDEMPOTENCY_REQUEST = "_idempotency_request"
"""Attribute that keeps the digest of that request."""


def check_same_request(kept: Mapping[str, str], wanted: str) -> None:
    """Refuses a key under which another request has made an image.

    Args:
        kept: Attributes of that image. Those of older versions keep no digest.
        wanted: Digest of the present request.

    Raises:
        RegionSearchError: ALREADY_EXISTS.
    """
    if kept.get(IDEMPOTENCY_REQUEST, wanted) != wanted:
        raise RegionSearchError(
            Kind.ALREADY_EXISTS,
            "the idempotency key belongs to another request, which sent other images: use a new key for "
            "each request",
            field="idempotency-key",
        )
