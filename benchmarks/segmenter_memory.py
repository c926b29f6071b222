"""What everything mode adds to a process: ``python -m benchmarks.segmenter_memory SIDE HEIGHT WIDTH CAP``.

SIDE is ours or reference. Prints the peak of resident memory, in MiB, beyond that of a process that holds the
model and the image. A side that wants more than CAP MiB is stopped, and CAP is printed.
"""

from __future__ import annotations

import functools
import resource
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.segmenter_rig import pocket, scene

POINTS_PER_SIDE = 8
CAP = 8192


@functools.cache
def peak(side: str, height: int, width: int, cap: int = CAP) -> float:
    """Runs this module; once, since nothing but the side and the size matters."""
    command = [sys.executable, "-m", __spec__.name, side, str(height), str(width), str(cap)]
    root = Path(__file__).parents[1]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, timeout=600)
    return float(result.stdout.split()[-1])


def _kibibytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def _measure(side: str, height: int, width: int, cap: int) -> float:
    from segment_anything import SamAutomaticMaskGenerator

    from services.segmenter.everything import segment_everything

    backend, options = pocket()
    options = replace(options, points_per_side=POINTS_PER_SIDE)
    image = scene(height, width)
    segment_everything(backend, scene(64, 64), options)  # what is only loaded once
    before = _kibibytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    address_space = (_kibibytes("VmSize") + cap * 1024) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    try:
        if side == "ours":
            segment_everything(backend, image, options)
        else:
            SamAutomaticMaskGenerator(backend.model, **asdict(options), output_mode="coco_rle").generate(
                image
            )
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
            raise
        return cap
    return (_kibibytes("VmHWM") - before) / 1024


if __name__ == "__main__":
    print(_measure(sys.argv[1], *map(int, sys.argv[2:5])))
