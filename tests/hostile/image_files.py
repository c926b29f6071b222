"""Small image files that would cost a decoder far more than their size and pixels tell."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

from PIL import Image


def save(image: Image.Image, file_format: str, **options: object) -> bytes:
    """The image as a file."""
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def with_chunks(png: bytes, chunks: bytes, behind_pixels: bool = False) -> bytes:
    """A PNG with more chunks, before its pixels or behind them."""
    place = len(png) - 12 if behind_pixels else 33
    return png[:place] + chunks + png[place:]


def scan_bomb(side: int, scans: int) -> bytes:
    """A progressive JPEG whose shortest scan is repeated."""
    whole = save(Image.new("RGB", (side, side), (90, 120, 30)), "JPEG", progressive=True, quality=50)
    starts = [place for place in range(len(whole)) if whole.startswith(b"\xff\xda", place)]
    pieces = [whole[a:b] for a, b in zip(starts, [*starts[1:], len(whole) - 2], strict=True)]
    return whole[:-2] + min(pieces, key=len) * scans + b"\xff\xd9"


def segment_bomb(segments: int) -> bytes:
    """A JPEG with empty comments."""
    whole = save(Image.new("RGB", (64, 64)), "JPEG")
    return whole[:2] + b"\xff\xfe\0\2" * segments + whole[2:]


def exif_bomb(segments: int) -> bytes:
    """A JPEG with EXIF in pieces, which a reader may put together in quadratic time."""
    whole = save(Image.new("RGB", (64, 64)), "JPEG")
    body = b"Exif\0\0" + bytes(65_000)
    return whole[:2] + (b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body) * segments + whole[2:]


def text_bomb(chunks: int) -> bytes:
    """A PNG with as many texts."""
    return with_chunks(save(Image.new("RGB", (64, 64)), "PNG"), png_chunk(b"tEXt", b"a\0b") * chunks)


def unpacking_bomb() -> bytes:
    """A PNG with a text and a profile that grow a thousandfold."""
    packed = zlib.compress(bytes(1 << 26))
    chunks = png_chunk(b"zTXt", b"a\0\0" + packed) + png_chunk(b"iCCP", b"a\0\0" + packed)
    return with_chunks(save(Image.new("RGB", (64, 64)), "PNG"), chunks)


def tiff(entries: Sequence[tuple[int, int, int, int]], body: bytes = b"", order: str = "<") -> bytes:
    """A TIFF of a directory (tag, type, count, value or offset) that follows a body at offset 8."""
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(body))
    directory = b"".join(struct.pack(order + "HHII", *entry) for entry in sorted(entries))
    return header + body + struct.pack(order + "H", len(entries)) + directory + struct.pack(order + "I", 0)


def grey_tiff(side: int, rows_per_strip: int, offsets: bytes, sizes: bytes, compression: int = 1) -> bytes:
    """A grey TIFF with these strips."""
    count = len(offsets) // 4
    entries = [
        (256, 4, 1, side), (257, 4, 1, side), (258, 4, 1, 8), (259, 4, 1, compression), (262, 4, 1, 1),
        (273, 4, count, 8), (277, 4, 1, 1), (278, 4, 1, rows_per_strip), (279, 4, count, 8 + len(offsets)),
    ]  # fmt: skip
    return tiff(entries, offsets + sizes)


def strip_bomb(strips: int) -> bytes:
    """A TIFF of 64 x 64 with as many strips."""
    return grey_tiff(64, 1, bytes(4 * strips), bytes(4 * strips))


def shared_strips(side: int = 7000) -> bytes:
    """A TIFF whose strips all are the same 1 MB."""
    data = zlib.compress(bytes(side), 0) + bytes(1 << 20)
    head = grey_tiff(side, 1, bytes(4 * side), bytes(4 * side), 8)
    offsets, sizes = struct.pack("<I", len(head)) * side, struct.pack("<I", len(data)) * side
    return grey_tiff(side, 1, offsets, sizes, 8) + data


def huge_tile() -> bytes:
    """A TIFF of 64 x 64 in a tile of 30,000 x 30,000."""
    data = zlib.compress(bytes(900_000))
    entries = [
        (256, 4, 1, 64), (257, 4, 1, 64), (258, 4, 1, 8), (259, 4, 1, 8), (262, 4, 1, 1), (277, 4, 1, 1),
        (322, 4, 1, 30_000), (323, 4, 1, 30_000), (324, 4, 1, 8), (325, 4, 1, len(data)),
    ]  # fmt: skip
    return tiff(entries, data)


def shared_tags(tags: int, size: int) -> bytes:
    """A TIFF whose tags all hold the same bytes."""
    whole = grey_tiff(8, 8, struct.pack("<I", 8), struct.pack("<I", 64))
    entries = [struct.unpack_from("<HHII", whole, 18 + 12 * index) for index in range(9)]
    return tiff([*entries, *((50_000 + tag, 7, size, 8) for tag in range(tags))], bytes(8) + bytes(size))


def looping_tiff() -> bytes:
    """A TIFF whose directory is followed by itself, and has itself for EXIF."""
    whole = save(Image.new("RGB", (64, 64), "red"), "TIFF")
    (start,) = struct.unpack_from("<I", whole, 4)
    (count,) = struct.unpack_from("<H", whole, start)
    end = start + 2 + 12 * count
    moved = len(whole)
    entries = whole[start + 2 : end] + struct.pack("<HHII", 34665, 4, 1, moved)
    directory = struct.pack("<H", count + 1) + entries + struct.pack("<I", moved)
    return whole[:4] + struct.pack("<I", moved) + whole[8:] + directory


def rle_bomb(nbytes: int, side: int = 7000) -> bytes:
    """A BMP in run lengths of one pixel."""
    rows = (b"\1\0" * side + b"\0\0") * (nbytes // (2 * side + 2))
    palette = bytes(1024)
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(rows), 0, 0, 256, 0)
    place = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", place + len(rows), 0, 0, place) + header + palette + rows


def gif_bomb(extensions: int) -> bytes:
    """A GIF with comments before its image."""
    whole = save(Image.new("P", (64, 64)), "GIF")
    place = 13 + (3 << (whole[10] & 7) + 1 if whole[10] & 0x80 else 0)
    return whole[:place] + b"\x21\xfe\1a\0" * extensions + whole[place:]


def webp_bomb(chunks: int) -> bytes:
    """A WebP with empty chunks of no meaning."""
    whole = save(Image.new("RGB", (64, 64)), "WEBP", exif=bytes(Image.Exif()), xmp=b"x")
    body = whole[12:30] + b"JUNK\0\0\0\0" * chunks + whole[30:]
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def frames_bomb(samples: int) -> bytes:
    """An AVIF that begins with an image and announces a film of as many frames."""
    whole = save(Image.new("RGB", (64, 64)), "AVIF")
    return whole + struct.pack(">I4sIII", 20, b"stsz", 0, 1, samples)


def polyglot() -> bytes:
    """A TIFF of 64 x 64, and an IM of 13,000 x 13,000 for readers that guess."""
    header = b"Image type: Greyscale image\r\nImage size (x*y): 13000*13000\r\n"
    return save(Image.new("L", (64, 64)), "TIFF") + header.ljust(512, b"\0")
