"""Which collections there are in Milvus, and where they lie."""

from __future__ import annotations

import secrets

from regionsearch.errors import Kind, RegionSearchError, not_found
from services.searcher.milvus import rows, tables
from services.searcher.milvus.access import STRONG, Access, listed
from services.searcher.milvus.session import Clock, Session
from services.searcher.milvus.tables import NO_VECTOR, Placement, placement_of
from services.searcher.types import Collection

_NO_COLLECTION = ""  # where the registry keeps what belongs to no collection


class Registry:
    """A table of all collections; where they lie is remembered, with what this process has written there.

    Args:
        access: The connection.
        clock: Stamps the writes of sessions.
        prefix: Prefix of all names in Milvus.
    """

    def __init__(self, access: Access, clock: Clock, prefix: str) -> None:
        self._access = access
        self._clock = clock
        self._prefix = prefix
        self._table = f"{prefix}registry"
        self._token_key: bytes | None = None
        self._known: dict[str, tuple[Placement, Session]] = {}
        if not access.call(access.client.has_collection, self._table):
            tables.create_plain_table(access, self._table, "name")

    def __contains__(self, name: str) -> bool:
        """Whether it is remembered where a collection lies."""
        return name in self._known

    def names(self) -> list[str]:
        """Of all collections, in order."""
        found = self._access.rows(self._table, 'name != ""', ["name"], STRONG)
        return sorted(row["name"] for row in found)

    def place(self, collection: Collection) -> Placement:
        """Where a new collection will lie.

        Raises:
            RegionSearchError: ALREADY_EXISTS.
        """
        if self._access.query(self._table, listed("name", [collection.name]), ["name"], STRONG):
            raise RegionSearchError(
                Kind.ALREADY_EXISTS, f"there is a collection {collection.name!r} already", field="name"
            )
        return placement_of(self._prefix, collection, tables.LAYOUT)

    def add(self, collection: Collection) -> None:
        """Enters a collection whose tables there are: from now on it exists."""
        self._access.upsert(self._table, [rows.collection_row(collection)], 1)

    def remove(self, name: str) -> None:
        """Takes a collection out."""
        self.forget(name)
        self._access.delete(self._table, [name], 1)

    def forget(self, name: str) -> None:
        """Looks the collection up again when it is next asked for."""
        self._known.pop(name, None)

    def find(self, name: str) -> tuple[Placement, Session]:
        """Where a collection lies, as remembered or else as the table says.

        Raises:
            RegionSearchError: NOT_FOUND.
        """
        known = self._known.get(name)
        if known is not None:
            return known
        found = self._access.query(
            self._table, listed("name", [name]), ["name", "created_ms", "body"], STRONG
        )
        if not found:
            raise not_found("collection", f"there is no collection {name!r}: create it first")
        layout = found[0]["body"].get("layout", 1)
        placement = placement_of(self._prefix, rows.collection_of(found[0]), layout)
        return self._known.setdefault(name, (placement, Session(self._clock)))

    def token_key(self, *, fresh: bool) -> bytes:
        """The key that signs page tokens; made by the first searcher that needs one, read again when `fresh`.

        Should two make one at the same time, the later one counts, and the other searcher reads it again.
        """
        if fresh or self._token_key is None:
            term = listed("name", [_NO_COLLECTION])
            found = self._access.query(self._table, term, ["body"], STRONG)
            if not found:
                body = {"token_key": secrets.token_hex(32)}
                made = {"name": _NO_COLLECTION, "created_ms": 0, "body": body, "vector": NO_VECTOR}
                self._access.upsert(self._table, [made], 1)
                found = self._access.query(self._table, term, ["body"], STRONG)
            self._token_key = bytes.fromhex(found[0]["body"]["token_key"])
        return self._token_key
