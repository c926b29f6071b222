"""What a caller may do, and which collections it may see.

The rights of the caller follow its request as far as the calls to the services. What is not done for a
caller, such as the sweep, may do everything.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from regionsearch.defaults import COLLECTION as DEFAULT
from regionsearch.errors import Kind, RegionSearchError, not_found

NEXT = "--next"
"""Ends the name of the collection that is to take another one's name (reindex)."""
PREVIOUS = "--previous"
"""Ends the name of a collection whose name another one has taken."""


class Scope(enum.StrEnum):
    """What a request does."""

    SEARCH = "search"
    """Searches, looks and counts."""
    WRITE = "write"
    """Adds images, and changes their names, tags and attributes."""
    DELETE = "delete"
    """Deletes images."""
    ADMIN = "admin"
    """Creates, deletes and moves collections; includes the other scopes."""


@dataclass(frozen=True, slots=True)
class Rights:
    """The rights of a caller.

    Attributes:
        scopes: What it may do.
        collections: The collections that it may see; None for all.
    """

    scopes: frozenset[Scope] = frozenset(Scope)
    collections: frozenset[str] | None = None

    def allow(self, scope: Scope) -> bool:
        """Whether a request of this scope may pass."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def show(self, collection: str) -> bool:
        """Whether a collection, or what becomes of it while it is moved to another model, may be seen."""
        name = collection or DEFAULT
        return self.collections is None or not self.collections.isdisjoint(
            (name, name.removesuffix(NEXT), name.removesuffix(PREVIOUS))
        )


UNLIMITED = Rights()
_rights: ContextVar[Rights] = ContextVar("rights", default=UNLIMITED)


def rights() -> Rights:
    """The rights of the caller of the surrounding request."""
    return _rights.get()


@contextlib.contextmanager
def having(caller: Rights) -> Iterator[None]:
    """Sets the rights for all that the body calls."""
    token = _rights.set(caller)
    try:
        yield
    finally:
        _rights.reset(token)


def require_visible(collection: str) -> None:
    """Answers as if there were no such collection where the caller may not see it.

    Raises:
        RegionSearchError: NOT_FOUND.
    """
    if not rights().show(collection):
        name = collection or DEFAULT
        raise not_found("collection", f"there is no collection {name!r}: create it first")


def require_creatable(collection: str) -> None:
    """Refuses to create a collection that the caller could not see.

    Raises:
        RegionSearchError: PERMISSION_DENIED.
    """
    if not rights().show(collection):
        names = ", ".join(sorted(rights().collections or ()))
        raise RegionSearchError(
            Kind.PERMISSION_DENIED,
            f"this API key is limited to some collections: it can create {names}, not {collection}",
            field="name",
        )
