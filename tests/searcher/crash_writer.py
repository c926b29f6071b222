"""Writes until it is killed; says each write on stdout only after it was answered."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import numpy as np

from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.queries import Deletion
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import Level, ModelIdentity, Record, StoredImage, Upsert

DIMENSION = 32
MODEL = ModelIdentity("open_clip", "crash", "digest", DIMENSION)
REGIONS = 7


def vectors_of(image_id: str) -> np.ndarray:
    """Every image's vectors follow from its name, so that a survivor can be checked."""
    rng = np.random.default_rng([ord(character) for character in image_id])
    vectors = rng.standard_normal((REGIONS, DIMENSION)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # one system call, so that threads do not mix their lines


def write(engine: EmbeddedEngine, image_id: str) -> None:
    records = [Record(f"{image_id}-{i}", image_id, Level.REGION, area=i) for i in range(REGIONS)]
    engine.upsert("c", MODEL, Upsert([StoredImage(image_id)], records, vectors_of(image_id)))
    say(f"+{image_id}")


def run(engine: EmbeddedEngine, run_name: str, thread: int) -> None:
    for number in range(1_000_000):
        image_id = f"{run_name}.{thread}.{number}"
        write(engine, image_id)
        if number % 5 == 4:
            gone = f"{run_name}.{thread}.{number - 2}"
            say(f"?{gone}")  # from here on it may or may not be there
            engine.delete("c", Deletion(image_ids=(gone,)))
            say(f"-{gone}")


if __name__ == "__main__":
    settings = EmbeddedSettings(folder=Path(sys.argv[1]), chunk_rows=64, page_ttl_s=0.0)
    opened = EmbeddedEngine(settings)
    threads = [threading.Thread(target=run, args=(opened, sys.argv[2], n), daemon=True) for n in range(3)]
    for worker in threads:
        worker.start()
    for worker in threads:
        worker.join()
