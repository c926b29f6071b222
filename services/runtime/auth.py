"""API keys, for gRPC and HTTP alike."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from pydantic import SecretStr

from regionsearch.errors import Kind, RegionSearchError


class ApiKeys:
    """The keys that let a caller in; without any, everybody is let in."""

    def __init__(self, keys: Iterable[SecretStr | str]) -> None:
        plain = (key.get_secret_value() if isinstance(key, SecretStr) else key for key in keys)
        self._keys = tuple(key.encode() for key in plain)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def check(self, authorization: str | None, api_key: str | None = None) -> str:
        """Lets a caller in or raises.

        Every key is compared in constant time, so that the time taken tells nothing about any of them.

        Args:
            authorization: The header ``authorization``: ``Bearer <key>``.
            api_key: The header ``x-api-key``.

        Returns:
            The caller's key; empty where none is asked for, whatever was given.

        Raises:
            RegionSearchError: UNAUTHENTICATED, where no key was given or it is unknown.
        """
        if not self._keys:
            return ""
        given = api_key or (authorization or "").removeprefix("Bearer ").strip()
        if not given:
            raise RegionSearchError(
                Kind.UNAUTHENTICATED,
                "an API key is needed: send it as 'authorization: Bearer <key>' or 'x-api-key: <key>'",
            )
        matches = [hmac.compare_digest(given.encode(), key) for key in self._keys]
        if not any(matches):
            raise RegionSearchError(Kind.UNAUTHENTICATED, "the API key is unknown")
        return given
