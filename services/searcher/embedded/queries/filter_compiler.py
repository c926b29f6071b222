"""Turns a filter into conditions on rows: ids, tags and attributes are looked up in the record store."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from services.searcher.conditions import Condition, ValueTest
from services.searcher.embedded.index.filters import (
    AnyTerm,
    CompiledFilter,
    Owners,
    Selected,
    Term,
    Terms,
)
from services.searcher.embedded.open_collections import OpenCollection
from services.searcher.embedded.rows import HighestRowids, RowIds
from services.searcher.embedded.store import lookups
from services.searcher.embedded.store.database import Database
from services.searcher.queries import NO_FILTER, Filter
from services.searcher.types import Level


def select_rows(
    database: Database, collection: OpenCollection, wanted: Filter, level: Level | None, seq: int
) -> list[Selected]:
    """The rows of a collection that pass a filter in the state after write `seq`, by segment.

    Args:
        database: The record store.
        collection: The collection, whose cache of filters is used.
        wanted: The filter.
        level: Only records of this level; None is both.
        seq: The write; its state is held.
    """
    views = collection.index.state.views

    def look_up() -> CompiledFilter:
        if wanted == NO_FILTER:
            return CompiledFilter(seq, level)
        with database.reading() as connection:
            terms = collection.terms.at(collection.revision)
            return compile_filter(connection, collection.rowid, wanted, level, seq, terms)

    return collection.filters.get((wanted, level, seq, collection.revision), look_up).select(views)


def compile_filter(
    connection: sqlite3.Connection,
    collection_rowid: int,
    wanted: Filter,
    level: Level | None,
    seq: int,
    terms: Terms,
) -> CompiledFilter:
    """Looks up the ids, tags and attributes that a filter names.

    Args:
        connection: A reading connection whose view is not older than `seq`.
        collection_rowid: The collection's rowid.
        wanted: The filter.
        level: Only records of this level; None is both.
        seq: The write whose state is searched.
        terms: The collection's cache. Inside a writing transaction, which may be rolled back, an empty one.
    """

    def named(table: str, ids: Sequence[str]) -> RowIds | None:
        return lookups.every_version(connection, table, collection_rowid, ids, seq) if ids else None

    def term(condition: Condition) -> tuple[Term, bool]:
        if condition.tag:
            found = _tagged(connection, collection_rowid, (condition.tag,), terms)
        else:
            found = _attribute(connection, collection_rowid, condition.attribute, condition.test, terms)
        return found, condition.negate

    chosen: list[AnyTerm] = []
    for tags, excluded in ((wanted.tags, False), (wanted.exclude_tags, True)):
        if tags:
            chosen.append(AnyTerm(((_tagged(connection, collection_rowid, tags, terms), excluded),)))
    equal = [Condition(attribute=name, test=ValueTest((value,))) for name, value in wanted.attributes]
    chosen += [AnyTerm((term(condition),)) for condition in equal]
    chosen += [AnyTerm(tuple(map(term, one.conditions)), one.negate) for one in wanted.conditions]
    terms.evict()
    return CompiledFilter(
        seq,
        level,
        wanted,
        images=named("image", wanted.image_ids),
        without_images=named("image", wanted.exclude_image_ids),
        keys=named("record", wanted.record_ids),
        without=named("record", wanted.exclude_record_ids),
        terms=tuple(chosen),
    )


def _tagged(
    connection: sqlite3.Connection, collection_rowid: int, tags: tuple[str, ...], terms: Terms
) -> Term:
    """Images with at least one of the tags."""

    def look_up(since: HighestRowids) -> Owners:
        return Owners(lookups.tagged_images(connection, collection_rowid, tags, since.image))

    # Reading the rowids opens the transaction's view, which the look-up reads too.
    return terms.get(("tags", *sorted(set(tags))), lookups.highest_rowids(connection), look_up)


def _attribute(
    connection: sqlite3.Connection, collection_rowid: int, name: str, test: ValueTest, terms: Terms
) -> Term:
    """Records that have such an attribute, or whose image has it while they have none of that name."""

    def look_up(since: HighestRowids) -> Owners:
        return Owners(*lookups.attribute_owners(connection, collection_rowid, name, test, since))

    return terms.get(("attribute", name, test), lookups.highest_rowids(connection), look_up)
