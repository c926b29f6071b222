"""`python -m loadtests.large_files`: whether the costliest files hold up the clicks of others.

For each format, one caller sends the file that costs the most within the limits, to click on it and to add
it, while another caller clicks on small new images. The delay is the other's slowest click, less the median
of the clicks before; the first line is that of an ordinary image. What is left behind is the memory (USS) of
the process that keeps most, before and after.
"""

from __future__ import annotations

import io
import os
import statistics
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import psutil
import typer
from numpy.typing import NDArray
from PIL import Image

from loadtests.callers import FLOOD_KEY, PEOPLE_KEYS
from loadtests.launch import Stack
from loadtests.scenes import Scene
from loadtests.soak import SMALL_CACHE, sample
from regionsearch.supervisor.child import MODULES

MAX_DELAY_S = 1.0
MAX_LEFT_MIB = 64.0
SIDE = 7000  # 49 of 50 megapixels
SCANS = 40  # added to a progressive JPEG
CLICKS_ALONE = 8
LINE = "{:20} {:>5} {:>8} {:>8} {:>9} {:>7}  {}"


def noise(side: int, most: int = 256) -> NDArray[np.uint8]:
    """An image of random values below `most`, repeated every 512 pixels."""
    tile = np.random.default_rng(7).integers(0, most, (512, 512, 3), np.uint8)
    times = -(-side // 512)
    return np.ascontiguousarray(np.tile(tile, (times, times, 1))[:side, :side])


def save(pixels: NDArray[np.uint8], file_format: str, **options: object) -> bytes:
    """The image as a file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, file_format, **options)
    return out.getvalue()


def jpeg_of_many_scans() -> bytes:
    """A progressive JPEG whose shortest scan is repeated."""
    whole = save(noise(SIDE, 32), "JPEG", progressive=True, quality=60)
    starts = [place for place in range(len(whole)) if whole.startswith(b"\xff\xda", place)]
    scans = [whole[a:b] for a, b in zip(starts, [*starts[1:], len(whole) - 2], strict=True)]
    return whole[:-2] + min(scans, key=len) * SCANS + b"\xff\xd9"


def png_of_16_bits() -> bytes:
    """A PNG of 12 bits in 16, which is decoded twice."""
    row = b"\0" + np.arange(3 * SIDE, dtype=">u2").__mod__(4096).astype(">u2").tobytes()
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(row * SIDE, 1)), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


FILES: dict[str, Callable[[], bytes]] = {
    "an ordinary image": lambda: Scene(0).jpeg,
    "JPEG": lambda: save(noise(SIDE), "JPEG", quality=50),
    "JPEG, many scans": jpeg_of_many_scans,
    "JPEG, no end": lambda: save(noise(SIDE), "JPEG", quality=50)[:-2],
    "PNG": lambda: save(noise(SIDE), "PNG", compress_level=1),
    "PNG, 12 bits in 16": png_of_16_bits,
    "TIFF, deflate": lambda: save(noise(SIDE, 4), "TIFF", compression="tiff_adobe_deflate"),
    "BMP": lambda: save(noise(3200), "BMP"),
    "GIF": lambda: save(noise(SIDE, 64)[..., 0], "GIF"),
    "WebP": lambda: save(noise(SIDE, 4), "WEBP", lossless=True, method=0, quality=0),
    "AVIF": lambda: save(noise(SIDE, 8), "AVIF", speed=10, quality=60),
}


class Caller:
    """Asks a gateway with a key of its own."""

    def __init__(self, url: str, key: str) -> None:
        self._client = httpx.Client(
            base_url=url, timeout=600, headers={"Authorization": f"Bearer {key}"}, trust_env=False
        )
        self._seed = 0

    def click(self, image: bytes) -> int:
        """Points at the middle of an image."""
        with Image.open(io.BytesIO(image)) as opened:
            point = f'[{{"x": {opened.width // 2}, "y": {opened.height // 2}}}]'
        form = {"points": point}
        return self._client.post("/v1/segment", files={"image": ("a", image)}, data=form).status_code

    def add(self, image: bytes) -> int:
        """Adds an image to the default collection."""
        return self._client.post("/v1/collections/default/images", files={"files": ("a", image)}).status_code

    def timed_click(self) -> float:
        """Seconds of a click on a new small image."""
        self._seed += 1
        scene = Scene(self._seed).jpeg
        begin = time.monotonic()
        status = self.click(scene)
        if status != 200:
            raise RuntimeError(f"a click was answered with {status}")
        return time.monotonic() - begin


def clicks(person: Caller, sending: Future[int]) -> Iterator[float]:
    """Clicks for as long as the file is worked on."""
    while not sending.done():
        yield person.timed_click()


def memory(stack: Stack) -> dict[str, float]:
    """MiB that each process holds."""
    return {name: sample(psutil.Process(stack.pid(name)))["memory MiB"] for name in MODULES}


def main(
    only: Annotated[str, typer.Option(help="Only formats whose name has this in it.")] = "",
    repeats: Annotated[int, typer.Option(help="Times that each file is sent.")] = 2,
) -> None:
    """Sends the costliest files to a local stack; exit code 1 when one delays others or stays in memory."""
    os.environ.setdefault(*SMALL_CACHE)
    os.environ["REGIONSEARCH_GATEWAY_API_KEYS"] = ",".join((FLOOD_KEY, PEOPLE_KEYS[0]))
    typer.echo(LINE.format("file", "MB", "answers", "alone s", "click +s", "add +s", "left MiB"))
    failed = False
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(Path(folder)) as stack,
        ThreadPoolExecutor(1) as pool,
    ):
        sender, person = Caller(stack.http, FLOOD_KEY), Caller(stack.http, PEOPLE_KEYS[0])
        for name, make in FILES.items():
            if only not in name:
                continue
            file = make()
            for act in (sender.click, sender.add):  # once before: allocators and caches find their size
                act(file)
            alone = statistics.median(person.timed_click() for _ in range(CLICKS_ALONE))
            before, statuses, delay = memory(stack), set(), [0.0, 0.0]
            for turn in range(repeats):
                # Each time another file, so that no cache answers.
                data = file + bytes([turn])
                for index, act in enumerate((sender.click, sender.add)):
                    sending = pool.submit(act, data)
                    delay[index] = max(delay[index], *(took - alone for took in clicks(person, sending)))
                    statuses.add(sending.result())
            time.sleep(1)
            left, where = max((now - before[process], process) for process, now in memory(stack).items())
            bad = max(delay) > MAX_DELAY_S or left > MAX_LEFT_MIB
            failed |= bad
            figures = (f"{seconds:.2f}" for seconds in (alone, *delay))
            answers = " ".join(map(str, sorted(statuses)))
            verdict = f"{left:+.0f} {where}{' FAILED' if bad else ''}"
            typer.echo(LINE.format(name, f"{len(file) / 1e6:.1f}", answers, *figures, verdict))
    raise typer.Exit(failed)


if __name__ == "__main__":
    typer.run(main)
