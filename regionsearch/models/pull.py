"""Downloads that resume, are checked, and appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.models.catalog import Weights
from regionsearch.models.folders import file_digest, models_dir

MIRROR = "REGIONSEARCH_MODELS_MIRROR"
CHUNK = 1 << 20

Progress = Callable[[int, int | None], None]


def pull(weights: Weights, progress: Progress = lambda done, total: None) -> Path:
    """Makes sure that a file of weights is in the models folder.

    An interrupted download goes on where it stopped. The file gets its name once its digest is right. With
    REGIONSEARCH_MODELS_MIRROR set, the file is taken from that URL's folder instead of its publisher.

    Args:
        weights: What to get.
        progress: Called with the bytes that are there and the bytes in all, if known.

    Returns:
        The file.

    Raises:
        RegionSearchError: UNAVAILABLE when the network or the publisher fails, DATA_LOSS when what came is
            not what was published.
    """
    target = models_dir() / weights.file
    if target.exists():
        verify(weights)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    _download(_source(weights), partial, progress)
    digest = file_digest(partial)
    if weights.sha256 is not None and digest != weights.sha256:
        partial.unlink()
        raise RegionSearchError(
            Kind.DATA_LOSS,
            f"{weights.file} has SHA-256 {digest[:12]}…, {weights.sha256[:12]}… was published; it was thrown "
            "away, pull it again",
        )
    _digest_file(target).write_text(f"{digest}  {target.name}\n")
    os.replace(partial, target)
    return target


def verify(weights: Weights) -> Path:
    """Compares a downloaded file with the digest that was published, or else with that of its download.

    Raises:
        RegionSearchError: NOT_FOUND when it is not there, DATA_LOSS when it has changed.
    """
    target = models_dir() / weights.file
    if not target.exists():
        raise RegionSearchError(
            Kind.NOT_FOUND, f"{target} is not there; get it with: regionsearch models pull {weights.model}"
        )
    expected = weights.sha256
    if expected is None and _digest_file(target).exists():
        expected = _digest_file(target).read_text().split()[0]
    if expected is not None and file_digest(target) != expected:
        raise RegionSearchError(
            Kind.DATA_LOSS,
            f"{target} is damaged; remove it and run: regionsearch models pull {weights.model}",
        )
    return target


def _digest_file(target: Path) -> Path:
    return target.with_name(target.name + ".sha256")


def _source(weights: Weights) -> str:
    mirror = os.environ.get(MIRROR)
    return f"{mirror.rstrip('/')}/{weights.file}" if mirror else weights.url


def _download(url: str, partial: Path, progress: Progress) -> None:
    with _as_our_errors(url), httpx.Client(follow_redirects=True, timeout=30) as client:
        there = partial.stat().st_size if partial.exists() else 0
        headers = {"range": f"bytes={there}-"} if there else {}
        with client.stream("GET", url, headers=headers) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                return  # all of it is there
            response.raise_for_status()
            if response.status_code != httpx.codes.PARTIAL_CONTENT:
                there = 0  # the server begins anew
            length = response.headers.get("content-length")
            total = there + int(length) if length is not None else None
            with partial.open("ab" if there else "wb") as file:
                progress(there, total)
                for chunk in response.iter_bytes(CHUNK):
                    file.write(chunk)
                    there += len(chunk)
                    progress(there, total)
                file.flush()
                os.fsync(file.fileno())
        if total is not None and there < total:
            raise httpx.ReadError(f"only {there} of {total} bytes came")


@contextmanager
def _as_our_errors(url: str) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPStatusError as error:
        message = f"{url} answers {error.response.status_code}; try again later, or set {MIRROR} to a mirror"
        raise RegionSearchError(Kind.UNAVAILABLE, message) from error
    except httpx.TransportError as error:
        message = f"{url} cannot be reached ({error}); what has come is kept: pull again to go on"
        raise RegionSearchError(Kind.UNAVAILABLE, message) from error
