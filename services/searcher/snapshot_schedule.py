"""Snapshots that the searcher takes by itself, and which of them are kept."""

from __future__ import annotations

import asyncio
import time

import structlog

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.bounded_executor import BoundedExecutor
from services.searcher.engine import Engine
from services.searcher.metrics import SNAPSHOT_FAILURES, SNAPSHOT_TIME
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import SnapshotInfo

PREFIX = "scheduled-"
_RETRY_S = 60.0
_log = structlog.get_logger(__name__)


def dated(prefix: str = "") -> str:
    """A name for a snapshot that is taken now."""
    return prefix + time.strftime("%Y%m%dT%H%M%SZ.sqlite", time.gmtime())


def take_snapshot(engine: Engine, name: str, keep: int, prefix: str = "") -> SnapshotInfo:
    """Takes a snapshot, and then deletes all but the newest ones.

    Args:
        engine: Of what.
        name: Its name.
        keep: How many are kept, this one included; 0 deletes none.
        prefix: Only those whose names begin so are deleted.
    """
    done = engine.snapshot(name)
    if keep:
        kept = [one for one in engine.list_snapshots() if one.name.startswith(prefix)]
        for older in kept[keep:]:
            engine.delete_snapshot(older.name)
    return done


async def take_on_schedule(
    engine: Engine, snapshots: BoundedExecutor, settings: EmbeddedSettings, retry_s: float = _RETRY_S
) -> None:
    """Takes snapshots as the settings say, until it is cancelled; does nothing where they ask for none.

    The last one of an earlier run counts. One that fails is tried again after a minute.
    """
    every_s = settings.snapshot_every_s
    if every_s is None:
        return
    while True:
        try:
            taken_at = await snapshots.run(lambda: _last(engine))
            SNAPSHOT_TIME.set(taken_at)
            if (left_s := taken_at + every_s - time.time()) > 0:
                await asyncio.sleep(left_s)
                continue
            done = await snapshots.run(
                lambda: take_snapshot(engine, dated(PREFIX), settings.snapshot_keep, PREFIX)
            )
            _log.info("snapshot taken", name=done.name, bytes=done.size_bytes, seq=done.seq)
        except RegionSearchError as error:
            if error.kind is not Kind.OVERLOADED:  # another snapshot or restore is under way
                SNAPSHOT_FAILURES.inc()
                _log.error("the scheduled snapshot could not be taken", reason=error.message)
            await asyncio.sleep(min(retry_s, every_s))


def _last(engine: Engine) -> float:
    """When the last scheduled snapshot was taken, in seconds since 1970; 0 without one."""
    found = (one.created_ms for one in engine.list_snapshots() if one.name.startswith(PREFIX))
    return max(found, default=0) / 1000
