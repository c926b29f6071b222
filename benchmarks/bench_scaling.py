"""Scaling out: what a second worker adds.

The embedders are stand-ins whose device takes 50 ms a call, and sleeps meanwhile: so a machine with two
cores can show what two machines with a GPU each would. Gateway and searcher are the real ones, and the
images come in over HTTP. The segmenter is fast, so that the embedders are what limits.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx

from benchmarks.bench_gateway import drive, sample_image, sender
from benchmarks.harness import Case, Pair
from benchmarks.simulated_services import Processes

IMAGES = 48
EMBED_S = 0.050  # on each embedder's device, for each of the two calls of an image


@contextlib.contextmanager
def two_against_one() -> Iterator[Pair]:
    """Two gateways in turns, the one with two embedders, the other with the first of them."""
    numbers = itertools.count()
    with (
        tempfile.TemporaryDirectory() as folder,
        Processes(Path(folder)) as processes,
        httpx.Client(timeout=300) as http,
    ):
        services = {"segmenter": processes.stand_in("segmenter"), "searcher": processes.searcher()}
        embedders = [processes.stand_in("embedder", call_s=EMBED_S) for _ in range(2)]
        two = sender(http, processes.gateway(embedder=",".join(embedders), **services))
        one = sender(http, processes.gateway(embedder=embedders[0], **services))

        def fresh() -> list[bytes]:
            return [sample_image(next(numbers)) for _ in range(IMAGES)]

        yield Pair(lambda: drive(two, fresh()), lambda: drive(one, fresh()))


def cases() -> list[Case]:
    """The one comparison."""
    return [
        Case(
            "scaling: ingest by 8 clients, two embedders of 50 ms a call against one",
            "images/s",
            two_against_one,
            better="higher",
            target=1.8,
        )
    ]
