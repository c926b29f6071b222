"""Deletes orphaned images: those left by an ingest that died after storing the bytes.

Orphans are harmless, and are used if the image is sent again, but they take up space. A sweep asks the
searcher about every stored image and never deletes one that it knows:

- images stored recently are left alone, since their ingest may still be running;
- an image is first quarantined, then the searcher is asked once more, and only then is it deleted. An ingest
  that arrives in between stores the image again, because it does not find it. If a sweep dies, the next one
  resolves the images in quarantine.

``python -m gateway.sweep`` runs one sweep; with ``sweep.every_s`` the gateway runs them itself.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json

import structlog
from pydantic import Field
from pydantic_settings import CliImplicitFlag

from gateway.catalog import Catalog
from gateway.image_records import ASKED_AT_ONCE
from gateway.image_store import ImageStore
from gateway.service_clients import Services
from gateway.settings import GatewaySettings
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.rpc.calls import chunked
from services.runtime.logs import configure_logging

_log = structlog.get_logger(__name__)


@dataclasses.dataclass
class Swept:
    """What a sweep has seen and done.

    Attributes:
        images: Images that it looked at.
        orphans: Those that nothing knows and that are old enough; deleted unless it was a dry run.
        kept: Those that were aside, or on their way there, and have a record: put back.
    """

    images: int = 0
    orphans: int = 0
    kept: int = 0


class Sweeper:
    """Deletes stored images that no record refers to.

    Args:
        catalog: Asks the searcher.
        store: Where the images are.
        older_than_s: What was put within this time is left alone.
    """

    def __init__(self, catalog: Catalog, store: ImageStore, older_than_s: float) -> None:
        self._catalog = catalog
        self._store = store
        self._older_than_s = older_than_s

    async def sweep(self, *, dry_run: bool = False) -> Swept:
        """Goes through the whole store, a part at a time.

        Raises:
            RegionSearchError: FAILED_PRECONDITION when the searcher has no image at all, as a new one that
                stands in the wrong place would; UNAVAILABLE when it or the store does not answer.
        """
        if not await self._catalog.has_images():
            raise RegionSearchError(
                Kind.FAILED_PRECONDITION,
                "the searcher has no image at all: is it the one that the image store belongs to?",
            )
        swept = Swept()
        for collection in await self._store.collections():
            async for partition in self._store.partitions(collection):
                swept.images += len(partition.images)
                for ids in chunked(partition.images, ASKED_AT_ONCE):
                    for image_id in await self._catalog.images.unknown(collection, ids):
                        await self._remove(collection, image_id, swept, dry_run)
                if not dry_run:
                    for image_id in partition.aside:  # of a sweep that died
                        await self._resolve(collection, image_id, swept)
                    for path in partition.parts:
                        await self._store.delete_part(path, self._older_than_s)
        _log.info("swept", dry_run=dry_run, **dataclasses.asdict(swept))
        return swept

    async def _remove(self, collection: str, image_id: str, swept: Swept, dry_run: bool) -> None:
        if not await self._store.older(collection, image_id, self._older_than_s):
            return
        if dry_run:
            swept.orphans += 1
        elif await self._store.quarantine(collection, image_id, self._older_than_s):
            await self._resolve(collection, image_id, swept)

    async def _resolve(self, collection: str, image_id: str, swept: Swept) -> None:
        """Decides about an image that is aside."""
        if await self._catalog.images.resolve_quarantined(collection, [image_id]):
            swept.orphans += 1
        else:
            swept.kept += 1


async def sweep_again_and_again(sweeper: Sweeper, every_s: float) -> None:
    """Sweeps until it is cancelled; what goes wrong is logged, and the next time is another chance."""
    while True:
        await asyncio.sleep(every_s)
        try:
            await sweeper.sweep()
        except RegionSearchError as error:
            _log.warning("not swept", error=error.message)
        except Exception:  # of an object store's own library, for one
            _log.exception("not swept")


class _Command(GatewaySettings):
    """Deletes stored images that nothing knows, once, with the gateway's own settings."""

    dry_run: CliImplicitFlag[bool] = Field(False, description="Only counts.")


async def _sweep_once(settings: _Command) -> Swept:
    store, services = ImageStore(settings.image_store), Services(settings)
    try:
        sweeper = Sweeper(Catalog(services, store, settings), store, settings.sweep.older_than_s)
        return await sweeper.sweep(dry_run=settings.dry_run)
    finally:
        await services.close()


def main() -> None:
    """Sweeps once with the gateway's settings; prints what was done as JSON."""
    settings = _Command.load()
    configure_logging(settings.process, settings.log_level, settings.log_format)
    try:
        swept = asyncio.run(_sweep_once(settings))
    except RegionSearchError as error:
        raise SystemExit(f"not swept: {error.message}") from None
    print(json.dumps(dataclasses.asdict(swept)))


if __name__ == "__main__":
    main()
