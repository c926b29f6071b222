"""Downloads that resume, are checked, and appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.models.catalog import HUB, Weights
from regionsearch.models.store import (
    VARIABLE,
    digest_file,
    file_digest,
    find_hub_file,
    look_up,
    models_dir,
    verify,
)

MIRROR = "REGIONSEARCH_MODELS_MIRROR"
CHUNK = 1 << 20
TIMEOUT_S = 30.0
ATTEMPTS = 5  # without a byte gained in between
BACKOFF_S, MAX_BACKOFF_S = (
    1.0,
    60.0,
)  # doubled each time; what the server asks for with Retry-After comes first
PASSING = {408, 425, 429, 500, 502, 503, 504}

Progress = Callable[[int, int | None], object]


def pull(weights: Weights, progress: Progress = lambda done, total: None) -> Path:
    """Makes sure that a file of weights is in the models folder.

    An interrupted download resumes unless the file has changed since. The file
    gets its name once its digest is right: the published one, or the one that the server itself announces.
    Of several processes that pull into one folder, one works at a time.
    What passes, such as a broken connection or a busy server, is tried again after a while. A file in the
    cache of the Hugging Face hub or of torch is used where it is.
    With REGIONSEARCH_MODELS_MIRROR set, it is taken from that URL's folder instead of its publisher; with
    HF_ENDPOINT set, files of the Hugging Face hub are taken from there, with HF_TOKEN if that is set.

    Args:
        weights: What to get.
        progress: Called with the bytes that are there and the bytes in all, if known.

    Returns:
        The file.

    Raises:
        RegionSearchError: UNAVAILABLE when the network or the publisher fails, NOT_FOUND when the publisher
            does not have the file, UNAUTHENTICATED or PERMISSION_DENIED when it wants a token, DATA_LOSS when
            what came is not what was published, STORAGE_FULL when there is no room, FAILED_PRECONDITION when
            the folder cannot be written.
    """
    if weights.fallback is not None:
        try:
            return pull(replace(weights, fallback=None), progress)
        except RegionSearchError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
        return pull(weights.fallback, progress)
    target = models_dir() / weights.file
    url = _source(weights)
    with _as_our_errors(url), _alone(target.parent):
        if look_up(weights) is not None:
            return verify(weights)
        partial = target.with_name(target.name + ".partial")
        version = target.with_name(target.name + ".version")
        announced = _download_persistently(url, weights, partial, version, progress)
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


def pull_repository(name: str, file: str = "tokenizer_config.json") -> Path:
    """Makes sure that tokenizer and configuration of a repository of the hub are on this machine.

    Args:
        name: Of the repository.
        file: One of them, by which they are found.

    Returns:
        Their folder.

    Raises:
        RegionSearchError: FAILED_PRECONDITION when huggingface_hub is not installed, else UNAVAILABLE.
    """
    found = find_hub_file(name, file)
    if found is not None:
        return found.parent
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION, f"the configuration of {name} needs: pip install 'regionsearch[hf]'"
        ) from error
    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=["*.json", "*.model", "*.txt"],
                cache_dir=models_dir() / "hub",
                endpoint=os.environ.get("HF_ENDPOINT") or None,
            )
        )
    except (OSError, httpx.HTTPError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RegionSearchError(
            Kind.UNAVAILABLE,
            f"the configuration of {name} cannot be read from the Hugging Face hub ({reason})",
        ) from error


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
    if mirror:
        return f"{mirror.rstrip('/')}/{weights.file}"
    endpoint = os.environ.get("HF_ENDPOINT")
    if endpoint and weights.url.startswith(f"{HUB}/"):
        return endpoint.rstrip("/") + weights.url.removeprefix(HUB)
    return weights.url


def _token(url: str) -> dict[str, str]:
    """The header that identifies the user to the hub, and to no other server; httpx drops it on redirects."""
    token = os.environ.get("HF_TOKEN", "").strip()
    hub = os.environ.get("HF_ENDPOINT") or HUB
    return {"authorization": f"Bearer {token}"} if token and url.startswith(f"{hub.rstrip('/')}/") else {}


def _download_persistently(
    url: str, weights: Weights, partial: Path, version: Path, progress: Progress
) -> str | None:
    """As :func:`_download`, again and again while the reason to fail is one that passes."""
    failures, there = 0, -1
    while True:
        try:
            return _download(url, weights, partial, version, progress)
        except (httpx.HTTPStatusError, httpx.TransportError) as error:
            if isinstance(error, httpx.UnsupportedProtocol | httpx.ProxyError):
                raise
            wait = None
            if isinstance(error, httpx.HTTPStatusError):
                if error.response.status_code not in PASSING:
                    raise
                asked = error.response.headers.get("retry-after", "")
                wait = float(asked) if asked.isdecimal() else None
            now = partial.stat().st_size if partial.exists() else 0
            failures, there = (1 if now > there else failures + 1), now
            if failures >= ATTEMPTS or (wait or 0) > MAX_BACKOFF_S:
                raise
            time.sleep(min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (failures - 1)) if wait is None else wait)


def _download(url: str, weights: Weights, partial: Path, version: Path, progress: Progress) -> str | None:
    """Completes `partial`; `version` keeps the entity tag of what it is a part of.

    Without an entity tag a part is completed too where the digest of the whole is known and will tell.

    Returns:
        The SHA-256 that the server has announced, if any.
    """
    there = partial.stat().st_size if partial.exists() else 0
    headers = {"accept-encoding": "identity", **_token(url)}
    if there and version.exists():
        headers |= {"range": f"bytes={there}-", "if-range": version.read_text()}
    elif there and weights.sha256 is not None:
        headers["range"] = f"bytes={there}-"
    with (
        httpx.Client(follow_redirects=True, timeout=TIMEOUT_S) as client,
        client.stream("GET", url, headers=headers) as response,
    ):
        announced = _announced_digest(response)
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return announced  # all of it is there; its digest will tell
        response.raise_for_status()
        if response.headers.get("content-type", "").startswith("text/html"):
            raise RegionSearchError(
                Kind.UNAVAILABLE,
                f"{url} answers with a page instead of a file; is there a login or a proxy in between, or is "
                f"the mirror ({MIRROR}) another server?",
            )
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
        if weights.size is not None and total not in (None, weights.size):
            raise RegionSearchError(
                Kind.DATA_LOSS,
                f"{url} sends {total} bytes, {weights.file} was published with {weights.size}; it is another "
                "file",
            )
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


_LATER = f"try again later, or set {MIRROR} to a mirror"
_ADVICE = {
    401: (Kind.UNAUTHENTICATED, "set HF_TOKEN to a token of the Hugging Face hub that is valid"),
    403: (
        Kind.PERMISSION_DENIED,
        "accept the licence on the model's page, and set HF_TOKEN to a token that may read it",
    ),
    404: (Kind.NOT_FOUND, f"the file is not there; look at its address, HF_ENDPOINT and {MIRROR}"),
    429: (Kind.UNAVAILABLE, f"too many requests from here; try again later, with HF_TOKEN, or set {MIRROR}"),
}


@contextmanager
def _as_our_errors(url: str) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPStatusError as error:
        kind, advice = _ADVICE.get(error.response.status_code, (Kind.UNAVAILABLE, _LATER))
        message = f"{url} answers {error.response.status_code}; {advice}"
        raise RegionSearchError(kind, message) from error
    except ImportError as error:  # httpx, at a proxy of a kind that it needs another package for
        message = f"the proxy in the environment cannot be used ({error}); pip install 'httpx[socks]'"
        raise RegionSearchError(Kind.FAILED_PRECONDITION, message) from error
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
