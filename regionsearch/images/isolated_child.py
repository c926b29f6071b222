"""The other side of `isolated`; a program of its own that imports decoders and nothing else."""

import io
import mmap
import os
import resource
import sys

from PIL import AvifImagePlugin, Image

EXIT_TOO_MUCH = 3
BASE_BYTES = 160 << 20  # without any image: Python, the libraries' data, stacks of a decoder's threads
THREADS = 4
STRIP_ROWS = 64


def main(file_format: str, mode: str, file: int, width: int, height: int, seconds: int, nbytes: int) -> None:
    """Decodes what comes in on stdin into the shared memory `file`."""
    os.nice(5)  # it is the only one that nobody else's click waits for
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_DATA, (BASE_BYTES + nbytes, BASE_BYTES + nbytes))
    if file_format == "HEIF":
        from pi_heif import register_heif_opener

        register_heif_opener(decode_threads=THREADS)
    elif file_format == "AVIF":
        AvifImagePlugin.DEFAULT_MAX_THREADS = THREADS
    image = Image.open(io.BytesIO(sys.stdin.buffer.read()), formats=[file_format])
    image.load()
    if image.size != (width, height):
        raise ValueError(f"it announces {width} x {height} pixels and has {image.width} x {image.height}")
    band = "RGBA" if mode == "RGBA" else "RGB"
    out = mmap.mmap(file, 4 * width * height)
    for top in range(0, height, STRIP_ROWS):
        rows = image.crop((0, top, width, min(top + STRIP_ROWS, height)))
        out.write(rows.convert(band).tobytes("raw", mode))


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
    except MemoryError:
        sys.exit(EXIT_TOO_MUCH)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
