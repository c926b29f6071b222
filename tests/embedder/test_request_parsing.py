"""Messages with masks: what they become, and what they cost."""

import tracemalloc

import numpy as np
import pytest

from regionsearch.images import ImageLimits, encode_image
from regionsearch.tensors import mask_to_proto
from regionsearch.v1 import embed_pb2, types_pb2
from services.embedder import request_parsing
from services.embedder.options import CropPolicy
from services.embedder.request_parsing import AHEAD_BYTES, read_regions
from services.embedder.tasks import RegionsTask, cut_batch

SIDE = 2000


def whole_image(count, encoding, with_mask=True):
    """A request for `count` regions, each of them all of an image."""
    image = types_pb2.Image(encoded=encode_image(np.zeros((SIDE, SIDE, 3), np.uint8)))
    if with_mask:
        cut = embed_pb2.RegionCut(mask=mask_to_proto(np.ones((SIDE, SIDE), np.bool_), encoding))
    else:
        cut = embed_pb2.RegionCut(box=types_pb2.Box(x_max=SIDE, y_max=SIDE))
    return embed_pb2.EmbedRegionsRequest(image=image, regions=[cut] * count)


@pytest.mark.parametrize(
    "encoding", [types_pb2.MASK_ENCODING_COCO_RLE, types_pb2.MASK_ENCODING_PACKED_BITS, None]
)
def test_many_large_masks_take_the_memory_of_a_few(encoding):
    request = whole_image(60, encoding, with_mask=encoding is not None)
    tracemalloc.start()
    try:
        regions = read_regions(request, ImageLimits())
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    image_bytes = 3 * SIDE * SIDE
    assert kept < image_bytes + AHEAD_BYTES + (1 << 20)  # 60 masks are 240 MB
    assert peak < 2 * image_bytes + AHEAD_BYTES + 12 * SIDE * SIDE
    assert regions.masks is None or regions.masks[59].all()


@pytest.mark.parametrize("encoding", types_pb2.MaskEncoding.values()[1:])
def test_crops_do_not_depend_on_when_masks_are_decoded(encoding, backend, monkeypatch):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 80, 3)).astype(np.uint8)
    masks = rng.random((6, 60, 80)) < 0.3
    request = embed_pb2.EmbedRegionsRequest(
        image=types_pb2.Image(encoded=encode_image(pixels)),
        regions=[
            *(embed_pb2.RegionCut(mask=mask_to_proto(mask, encoding)) for mask in masks),
            embed_pb2.RegionCut(
                mask=mask_to_proto(masks[0], encoding),
                box=types_pb2.Box(x_min=3.5, y_min=-7, x_max=40, y_max=30.2),
            ),
            embed_pb2.RegionCut(box=types_pb2.Box(x_min=70, y_min=50, x_max=71, y_max=51)),
        ],
    )
    crops = []
    for ahead in (AHEAD_BYTES, 3 * 60 * 80, 0):
        monkeypatch.setattr(request_parsing, "AHEAD_BYTES", ahead)
        task = RegionsTask(lambda: read_regions(request, ImageLimits()), 8, CropPolicy.ENSEMBLE)
        crops.append(cut_batch([(task.prepare(backend), 3, 14)], backend))
    assert crops[0].shape == (11, 3, backend.size, backend.size)
    assert crops[0].equal(crops[1])
    assert crops[0].equal(crops[2])
