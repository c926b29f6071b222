"""What images take in memory, on disk and on the network, from bytes that were measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# Measured on 2026-11-30: the bundled scenes, pocket models, 322 records, with SQLite's pages and indexes.
ROW_BYTES = 1020  # of a region without its vector on the searcher's disk: mask, box, scores, ids, indexes
MASK_BYTES = 750  # of a region's box and mask on the network, run-length coded
# Of the searcher's approximate indexes, docs/operations.md.
INDEX_BYTES, RESIDENT_BYTES = 3.15, 80  # mapped, for each dimension; in memory, for each record

DISK_COMPONENT_BYTES = 2  # of a vector in SQLite: half precision
WIRE_COMPONENT_BYTES = 4  # on the network, and in Milvus
GIB = 1 << 30


def storage(dimension: int, regions: int, image_bytes: int) -> Iterator[Sequence[object]]:
    """Rows of a table: for numbers of images, what each place has to hold."""
    yield ("images", "records", "image store", "searcher's disk, embedded",
           "its memory: least, with all indexes", "Milvus: vectors as fp32, as 8-bit codes",
           "network, in all")  # fmt: skip
    for name, images in (
        ("1 M", 10**6),
        (f"{1e3 / regions:.0f} M (1 B regions)", 10**9 // regions),
        ("100 M", 10**8),
    ):
        records = images * (1 + regions)
        index = records * dimension * INDEX_BYTES
        disk = records * (ROW_BYTES + dimension * DISK_COMPONENT_BYTES) + index
        yield (
            name, f"{records / 1e6:,.0f} M", size(images * image_bytes), size(disk),
            f"{size(records * RESIDENT_BYTES)}, {size(records * RESIDENT_BYTES + index)}",
            f"{size(records * dimension * WIRE_COMPONENT_BYTES)}, {size(records * dimension)}",
            size(images * network(dimension, regions, image_bytes)),
        )  # fmt: skip


def network(dimension: int, regions: int, image_bytes: int) -> float:
    """Bytes of an image between client, gateway and services.

    Its file goes to the gateway, the segmenter, the embedder and the image store; masks come from the
    segmenter and go to the embedder and the searcher, vectors come from the embedder and go to the searcher.
    """
    vectors = (1 + regions) * dimension * WIRE_COMPONENT_BYTES
    return 4 * image_bytes + 3 * regions * MASK_BYTES + 2 * vectors


def size(count: float) -> str:
    """Bytes in GiB or TiB."""
    return f"{count / GIB:,.0f} GiB" if count < 1024 * GIB else f"{count / GIB / 1024:,.1f} TiB"
