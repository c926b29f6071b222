"""Downloads that resume, are checked, and appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.models.catalog import Weights
from regionsearch.models.store import VARIABLE, digest_file, file_digest, models_dir, verify

MIRROR = "REGIONSEARCH_MODELS_MIRROR"
CHUNK = 1 << 20
TIMEOUT_S = 30.0

Progress = Callable[[int, int | None], object]


def pull(weights: Weights, progress: Progress = lambda done, total: None) -> Path:
    """Makes sure that a file of weights is in the models folder.

    An interrupted download goes on where it stopped, as long as the file has not changed meanwhile. The file
    gets its name once its digest is right: the published one, or the one that the server itself announces.
    Of several processes that pull into one folder, one works at a time.
    With REGIONSEARCH_MODELS_MIRROR set, it is taken from that URL's folder instead of its publisher.

    Args:
        weights: What to get.
        progress: Called with the bytes that are there and the bytes in all, if known.

    Returns:
        The file.

    Raises:
        RegionSearchError: UNAVAILABLE when the network or the publisher fails, DATA_LOSS when what came is
            not what was published, STORAGE_FULL when there is no room, FAILED_PRECONDITION when the folder
            cannot be written.
    """
    target = models_dir() / weights.file
    url = _source(weights)
    with _as_our_errors(url), _alone(target.parent):
        if target.is_file():
            return verify(weights)
        partial = target.with_name(target.name + ".partial")
        version = target.with_name(target.name + ".version")
        announced = _download(url, partial, version, progress)
        digest = file_digest(partial)
        expected = weights.sha256 or announced or digest
        if digest != expected:
            partial.unlink()
            raise RegionSearchError(
                Kind.DATA_LOSS,
                f"{weights.file} came with SHA-256 {digest[:12]}…, not the published {expected[:12]}…; it "
                "was thrown away: pull it again",
            )
        digest_file(target).write_text(f"{digest}  {target.name}\n")
        os.replace(partial, target)
        version.unlink(missing_ok=True)
    return target


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Makes the folder, and waits until no other process pulls into it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        with suppress(OSError):  # a network folder without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _source(weights: Weights) -> str:
    mirror = os.environ.get(MIRROR)
    return f"{mirror.rstrip('/')}/{weights.file}" if mirror else weights.url


def _download(url: str, partial: Path, version: Path, progress: Progress) -> str | None:
    """Completes `partial`; `version` keeps the entity tag of what it is a part of.

    Returns:
        The SHA-256 that the server has announced, if any.
    """
    there = partial.stat().st_size if partial.exists() else 0
    headers = {"accept-encoding": "identity"}
    if there and version.exists():
        headers |= {"range": f"bytes={there}-", "if-range": version.read_text()}
    with (
        httpx.Client(follow_redirects=True, timeout=TIMEOUT_S) as client,
        client.stream("GET", url, headers=headers) as response,
    ):
        announced = _announced_digest(response)
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return announced  # all of it is there; its digest will tell
        response.raise_for_status()
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            there = 0  # another version, or a server that knows no ranges: from the beginning
        elif not response.headers.get("content-range", "").startswith(f"bytes {there}-"):
            raise httpx.RemoteProtocolError(f"asked for what follows byte {there}, it sends another part")
        if "etag" in response.headers:
            version.write_text(response.headers["etag"])
        else:
            version.unlink(missing_ok=True)
        length = response.headers.get("content-length")
        total = None if length is None else there + int(length)
        if length is not None:
            _check_room(partial.parent, int(length))
        with partial.open("ab" if there else "wb") as file:
            progress(there, total)
            for chunk in response.iter_bytes(CHUNK):
                there += file.write(chunk)
                progress(there, total)
            file.flush()
            os.fsync(file.fileno())
    return announced


def _announced_digest(response: httpx.Response) -> str | None:
    """Model hubs name the SHA-256 of a large file as its entity tag, in the redirection to its storage."""
    for step in (*response.history, response):
        tag: str = step.headers.get("x-linked-etag", "").strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", tag):
            return tag
    return None


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RegionSearchError(
            Kind.STORAGE_FULL,
            f"{folder} has {free >> 20} MiB free, {needed >> 20} MiB are needed; make room, or set "
            f"{VARIABLE} to another disk",
        )


@contextmanager
def _as_our_errors(url: str) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPStatusError as error:
        message = f"{url} answers {error.response.status_code}; try again later, or set {MIRROR} to a mirror"
        raise RegionSearchError(Kind.UNAVAILABLE, message) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        message = f"{url} cannot be read ({reason}); what has come is kept: pull again to go on"
        raise RegionSearchError(Kind.UNAVAILABLE, message) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        message = f"{error.filename or models_dir()} cannot be written ({error.strerror}); "
        message += "make room and pull again, or set " if full else "change that, or set "
        raise RegionSearchError(
            Kind.STORAGE_FULL if full else Kind.FAILED_PRECONDITION, f"{message}{VARIABLE} to another folder"
        ) from error
