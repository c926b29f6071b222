"""kill -9 at random moments: no answered write is lost, none is half there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import Collection
from tests.searcher.crash_writer import MODEL, REGIONS, vectors_of
from tests.stack import ROOT


def crash_rounds(folder: Path, rounds: int) -> int:
    """Lets a writer run and kills it, again and again in one folder; returns the writes that it answered."""
    engine = EmbeddedEngine(EmbeddedSettings(folder=folder))
    engine.create_collection(Collection("c", MODEL))
    engine.close()
    present: set[str] = set()
    unsure: set[str] = set()
    gone: set[str] = set()
    answered = 0
    for number in range(rounds):
        writer = subprocess.Popen(
            [sys.executable, "-m", "tests.searcher.crash_writer", str(folder), f"r{number}"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        said = [writer.stdout.readline() for _ in range(random.randint(8, 60))]
        assert all(said), "the writer ended by itself"
        time.sleep(random.uniform(0.0, 0.02))  # to the middle of anything
        writer.send_signal(signal.SIGKILL)
        for line in ("".join(said) + writer.stdout.read()).splitlines():
            sign, image_id = line[0], line[1:]
            if sign == "+":
                present.add(image_id)
                answered += 1
            elif sign == "?":
                present.remove(image_id)
                unsure.add(image_id)
            else:
                unsure.remove(image_id)
                gone.add(image_id)
        writer.wait()
        unanswered = check(folder, present, unsure, gone)
        assert unanswered <= 3 * (number + 1), "more writes survived than were under way"
    return answered


def check(folder: Path, present: set[str], unsure: set[str], gone: set[str]) -> int:
    """Compares the store with what was answered; returns how many unanswered writes it holds."""
    engine = EmbeddedEngine(EmbeddedSettings(folder=folder))
    try:
        listed, after = set(), None
        while True:
            page = engine.list_images("c", 1000, after)
            listed |= {image.image_id for image in page.images}
            after = page.next_key
            if after is None:
                break
        assert present <= listed, f"lost: {sorted(present - listed)[:5]}"
        assert not gone & listed, "a deleted image is back"
        sample = random.sample(sorted(listed), min(50, len(listed)))
        stored = engine.get_records("c", [], sample, masks=False, vectors=True)
        assert len(stored.records) == REGIONS * len(sample), "an image is half there"
        assert stored.vectors is not None
        by_id = {r.record_id: v for r, v in zip(stored.records, stored.vectors, strict=True)}
        for image_id in sample:
            for row, vector in enumerate(vectors_of(image_id)):
                np.testing.assert_allclose(by_id[f"{image_id}-{row}"], vector, atol=2e-3)
        collection = engine.get_collection("c")
        assert collection.image_count == len(listed)
        assert collection.record_count == REGIONS * len(listed)
        return len(listed - present - unsure)
    finally:
        engine.close()


def test_a_killed_writer_loses_no_acknowledged_write(tmp_path: Path) -> None:
    assert crash_rounds(tmp_path / "data", rounds=5) > 20


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_writer_killed_hundreds_of_times_loses_no_acknowledged_write(tmp_path: Path) -> None:
    assert crash_rounds(tmp_path / "data", rounds=300) > 3000
