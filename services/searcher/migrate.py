"""`python -m services.searcher migrate COLLECTION --from embedded --to milvus`: between the two engines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.engine import Engine, upsert_patiently
from services.searcher.factory import open_engine
from services.searcher.settings import SearcherSettings
from services.searcher.types import ImagePlace, Upsert

_ENGINES = ("embedded", "milvus")
_IMAGES = 20  # of one write; an image has about 65 records


@dataclass(frozen=True, slots=True)
class MigrationResult:
    """The number of images and records that were copied."""

    images: int
    records: int


def migrate(source: Engine, target: Engine, name: str) -> MigrationResult:
    """Copies a collection, leaving the source as it is. Repeated after a failure, it resumes.

    Vectors are the stored ones, so both engines give the same scores.

    Raises:
        RegionSearchError: NOT_FOUND; MODEL_MISMATCH when the target has another collection of that name.
    """
    wanted = source.get_collection(name)
    try:
        target.create_collection(wanted)
    except RegionSearchError as error:
        if error.kind is not Kind.ALREADY_EXISTS:
            raise
    images = records = 0
    after: ImagePlace | None = None
    while True:
        page = source.list_images(name, _IMAGES, after)
        if page.images:
            ids = [image.image_id for image in page.images]
            stored = source.get_records(name, [], ids, masks=True, vectors=True)
            assert stored.vectors is not None
            write = Upsert(page.images, stored.records, stored.vectors, skip_existing=True)
            done = upsert_patiently(target, name, wanted.model, write)
            images += len(page.images) - len(done.skipped)
            records += done.record_count
        if page.next_key is None:
            return MigrationResult(images, records)
        after = page.next_key


def main(arguments: Sequence[str]) -> int:
    """The command; both engines are found through the searcher's own settings. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m services.searcher migrate",
        description="Copies a collection from one engine to the other; the first one keeps it. Repeated "
        "after a failure, it resumes. Stop the searcher that uses the embedded folder before.",
        epilog="Addresses and folders are those of the searcher: REGIONSEARCH_SEARCHER_…, or the TOML file.",
    )
    parser.add_argument("collection")
    parser.add_argument("--from", dest="source", choices=_ENGINES, required=True)
    parser.add_argument("--to", dest="target", choices=_ENGINES, required=True)
    chosen = parser.parse_args(arguments)
    if chosen.source == chosen.target:
        parser.error("--from and --to name the same engine")
    settings = SearcherSettings.load([])
    opened: list[Engine] = []
    try:
        for name in (chosen.source, chosen.target):
            chosen_settings = settings.model_copy(update={"engine": name})
            opened.append(open_engine(chosen_settings, _give_up))
        moved = migrate(opened[0], opened[1], chosen.collection)
    except RegionSearchError as error:
        print(f"migrate: {error.message}", file=sys.stderr)
        return 1
    finally:
        for engine in opened:
            engine.close()
    print(f"{moved.images} images with {moved.records} records are now in {chosen.target}")
    return 0


def _give_up(reason: str) -> None:
    print(f"migrate: {reason}", file=sys.stderr)
