"""EmbedService over real gRPC, against one crop at a time through PIL and the bare model."""

import asyncio
import threading

import grpc
import numpy as np
import pytest
import torch

from regionsearch.errors import Kind, from_rpc_error
from regionsearch.images import encode_image
from regionsearch.tensors import mask_to_proto, tensor_from_proto
from regionsearch.v1 import embed_pb2, types_pb2
from services.embedder import request_parsing
from services.embedder.crops import crop_regions
from services.embedder.options import CropPolicy
from services.embedder.resample import resize_image

HEIGHT, WIDTH, COUNT = 90, 120, 11

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)
    return np.kron(coarse, np.ones((10, 10, 1), np.uint8))


@pytest.fixture(scope="module")
def regions():
    """COUNT boxes, and in each an ellipse."""
    rng = np.random.default_rng(4)
    corner = rng.uniform(0, (WIDTH - 50, HEIGHT - 50), (COUNT, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 49, (COUNT, 2))], axis=1).astype(np.float32)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    masks = np.stack(
        [
            ((x - (b[0] + b[2]) / 2) / (b[2] - b[0])) ** 2 + ((y - (b[1] + b[3]) / 2) / (b[3] - b[1])) ** 2
            < 0.25
            for b in boxes
        ]
    )
    return boxes, masks


def region_request(pixels, boxes, masks, policy=types_pb2.CROP_POLICY_BLUR, **rest):
    cuts = [
        embed_pb2.RegionCut(
            box=types_pb2.Box(
                **dict(zip(("x_min", "y_min", "x_max", "y_max"), map(float, box), strict=True))
            ),
            mask=mask_to_proto(mask),
        )
        for box, mask in zip(boxes, masks, strict=True)
    ]
    image = types_pb2.Image(encoded=encode_image(pixels))
    return embed_pb2.EmbedRegionsRequest(image=image, regions=cuts, crop_policy=policy, **rest)


def direct(backend, pixels, boxes, masks, policy):
    """The same vectors from the bare functions, all at once."""
    image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    vectors = sum(
        backend.embed_crops(
            crop_regions(
                image,
                torch.from_numpy(boxes),
                torch.from_numpy(masks),
                part,
                backend.size,
                mean=backend.mean,
                std=backend.std,
            )
        )
        for part in policy.parts
    )
    return torch.nn.functional.normalize(vectors, dim=-1).numpy()


@pytest.mark.parametrize("policy", list(CropPolicy))
async def test_region_vectors_are_those_of_the_bare_model(service, backend, pixels, regions, policy):
    value = types_pb2.CropPolicy.Value(f"CROP_POLICY_{policy.value.upper()}")
    answer = await service.EmbedRegions(region_request(pixels, *regions, policy=value))
    vectors = tensor_from_proto(answer.vectors, "vectors", ndim=2)
    np.testing.assert_allclose(vectors, direct(backend, pixels, *regions, policy), atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert answer.model.crop_policy == value
    assert answer.model.dimension == vectors.shape[1] == 64


@pytest.mark.parametrize("policy", ["BBOX", "ENSEMBLE"])
async def test_whole_image_and_regions_come_from_one_decode(service, pixels, regions, policy, monkeypatch):
    decode, decodes = request_parsing.image_from_proto, []

    def counted(*arguments):
        decodes.append(arguments)
        return decode(*arguments)

    value = types_pb2.CropPolicy.Value(f"CROP_POLICY_{policy}")
    request = region_request(pixels, *regions, policy=value)
    alone = await service.EmbedRegions(request)
    assert not alone.HasField("image_vector")
    whole = await service.EmbedImages(embed_pb2.EmbedImagesRequest(images=[request.image]))

    monkeypatch.setattr(request_parsing, "image_from_proto", counted)
    request.include_image = True
    both = await service.EmbedRegions(request)
    assert len(decodes) == 1
    for answer, expected in ((both.vectors, alone.vectors), (both.image_vector, whole.vectors)):
        np.testing.assert_allclose(
            tensor_from_proto(answer, "vectors", ndim=2), tensor_from_proto(expected, "", ndim=2), atol=2e-5
        )

    del request.regions[:]
    none = await service.EmbedRegions(request)
    assert list(none.vectors.shape) == [0, 64]
    np.testing.assert_allclose(
        tensor_from_proto(none.image_vector, ""), tensor_from_proto(whole.vectors, ""), atol=2e-5
    )


async def test_concurrent_callers_get_their_own_answers(service, backend, pixels, regions):
    boxes, masks = regions
    expected = direct(backend, pixels, boxes, masks, CropPolicy.BLUR)
    answers = await asyncio.gather(
        *(
            service.EmbedRegions(region_request(pixels, boxes[first : first + 5], masks[first : first + 5]))
            for first in [0, 1, 2, 3, 4, 5, 6] * 3
        )
    )
    for first, answer in zip([0, 1, 2, 3, 4, 5, 6] * 3, answers, strict=True):
        vectors = tensor_from_proto(answer.vectors, "vectors")
        np.testing.assert_allclose(vectors, expected[first : first + 5], atol=2e-5)


async def test_mask_encodings_and_missing_parts(service, pixels, regions):
    boxes, masks = regions
    base = region_request(pixels, boxes[:3], masks[:3])
    expected = tensor_from_proto((await service.EmbedRegions(base)).vectors, "vectors")
    for encoding in (types_pb2.MASK_ENCODING_PACKED_BITS, types_pb2.MASK_ENCODING_PNG):
        other = embed_pb2.EmbedRegionsRequest()
        other.CopyFrom(base)
        for index, region in enumerate(other.regions):
            region.mask.CopyFrom(mask_to_proto(masks[index], encoding))
        vectors = tensor_from_proto((await service.EmbedRegions(other)).vectors, "vectors")
        np.testing.assert_array_equal(vectors, expected)
    # Without a box the mask's own is taken; a box that touches the same pixels gives the same crop.
    mask_only = embed_pb2.EmbedRegionsRequest(image=base.image, crop_policy=base.crop_policy)
    tight = embed_pb2.EmbedRegionsRequest(image=base.image, crop_policy=base.crop_policy)
    for index, region in enumerate(base.regions):
        rows, columns = np.nonzero(masks[index])
        mask_only.regions.add(mask=region.mask)
        box = types_pb2.Box(
            x_min=columns.min(), y_min=rows.min(), x_max=columns.max() + 1, y_max=rows.max() + 1
        )
        tight.regions.add(mask=region.mask, box=box)
    one, two = [(await service.EmbedRegions(request)).vectors.data for request in (mask_only, tight)]
    assert one == two


async def test_images_raw_and_encoded(service, backend, pixels):
    raw = types_pb2.RawImage(height=HEIGHT, width=WIDTH, rgb=pixels.tobytes())
    images = [types_pb2.Image(encoded=encode_image(pixels)), types_pb2.Image(raw=raw)]
    answer = await service.EmbedImages(
        embed_pb2.EmbedImagesRequest(images=images, priority=types_pb2.PRIORITY_BULK)
    )
    vectors = tensor_from_proto(answer.vectors, "vectors", ndim=2)
    fitted = resize_image(pixels, backend.size, "squash")
    expected = backend.embed_crops((fitted / 255 - 0.5).div(0.25)[None]).numpy()
    np.testing.assert_allclose(vectors, np.repeat(expected, 2, 0), atol=2e-5)
    assert answer.model.crop_policy == types_pb2.CROP_POLICY_UNSPECIFIED


async def test_texts_with_templates_cache_and_truncation(service, backend):
    texts = ["a red mug", "dog", "a " + "very " * 30 + "long text", "dog"]
    plain = await service.EmbedTexts(embed_pb2.EmbedTextsRequest(texts=texts))
    vectors = tensor_from_proto(plain.vectors, "vectors", ndim=2)
    tokens, cut = backend.tokenize(texts)
    np.testing.assert_allclose(vectors, backend.embed_tokens(tokens).numpy(), atol=2e-5)
    assert list(plain.truncated) == cut == [False, False, True, False]
    again = await service.EmbedTexts(embed_pb2.EmbedTextsRequest(texts=texts))
    assert again.vectors.data == plain.vectors.data
    for templates in (embed_pb2.TEXT_TEMPLATES_SIMPLE, embed_pb2.TEXT_TEMPLATES_FULL):
        filled = await service.EmbedTexts(
            embed_pb2.EmbedTextsRequest(texts=["dog", "cat"], templates=templates)
        )
        ensemble = tensor_from_proto(filled.vectors, "vectors", ndim=2)
        np.testing.assert_allclose(np.linalg.norm(ensemble, axis=1), 1, atol=1e-5)
        assert not np.allclose(ensemble[0], vectors[1], atol=1e-3)


async def test_invisible_characters_do_not_change_a_vector(service):
    texts = ["dog", "dog\u200b", "\u200edog", "do\u00adg", "\ufeffdog"]
    answer = await service.EmbedTexts(embed_pb2.EmbedTextsRequest(texts=texts))
    vectors = tensor_from_proto(answer.vectors, "vectors", ndim=2)
    assert (vectors == vectors[0]).all()


async def test_a_text_as_long_as_the_context_is_not_called_truncated(service, backend):
    words = "cat " * 14  # and the two marks: exactly 16 tokens
    answer = await service.EmbedTexts(embed_pb2.EmbedTextsRequest(texts=[words, words + "cat"]))
    assert list(answer.truncated) == [False, True]


async def test_model_describes_itself(service, backend):
    model = (await service.GetModel(embed_pb2.EmbedServiceGetModelRequest())).model
    assert (model.family, model.variant, model.dimension) == ("open_clip", "tiny", 64)
    assert model.weights_digest == backend.files.digest
    assert model.crop_policy == types_pb2.CROP_POLICY_BLUR
    assert (model.precision, model.device) == ("fp32", "cpu")


def broken_requests(pixels, regions):
    _, masks = regions
    good = types_pb2.Image(encoded=encode_image(pixels))
    box = types_pb2.Box(x_max=10, y_max=10)

    def ask(image=good, policy=0, **cut):
        return embed_pb2.EmbedRegionsRequest(
            image=image,
            regions=[embed_pb2.RegionCut(box=box), embed_pb2.RegionCut(**cut)],
            crop_policy=policy,
        )

    nowhere = types_pb2.Box(x_min=500, y_min=0, x_max=510, y_max=10)
    backwards = types_pb2.Box(x_min=10, x_max=5, y_max=10)
    endless = types_pb2.Box(x_max=float("nan"), y_max=10)
    empty = mask_to_proto(np.zeros((HEIGHT, WIDTH), bool))
    other = mask_to_proto(np.ones((5, 5), bool))
    garbled = types_pb2.Mask(height=HEIGHT, width=WIDTH, coco_rle="~~~")
    outside = mask_to_proto(masks[0])
    return {
        "no regions": (embed_pb2.EmbedRegionsRequest(image=good), Kind.INVALID_ARGUMENT, "regions"),
        "too many": (
            embed_pb2.EmbedRegionsRequest(image=good, regions=[embed_pb2.RegionCut(box=box)] * 1001),
            Kind.TOO_LARGE,
            "regions",
        ),
        "no image": (ask(types_pb2.Image(), box=box), Kind.INVALID_ARGUMENT, "image"),
        "not an image": (
            ask(types_pb2.Image(encoded=b"x" * 99), box=box),
            Kind.UNSUPPORTED_IMAGE,
            "image.encoded",
        ),
        "nothing to cut": (ask(), Kind.INVALID_ARGUMENT, "regions[1]"),
        "box outside": (ask(box=nowhere), Kind.INVALID_ARGUMENT, "regions[1].box"),
        "box backwards": (ask(box=backwards), Kind.INVALID_ARGUMENT, "regions[1].box"),
        "box with nan": (ask(box=endless), Kind.INVALID_ARGUMENT, "regions[1].box"),
        "mask empty": (ask(mask=empty), Kind.INVALID_ARGUMENT, "regions[1].mask"),
        "mask of another size": (ask(mask=other), Kind.INVALID_ARGUMENT, "regions[1].mask"),
        "mask garbled": (ask(mask=garbled), Kind.INVALID_ARGUMENT, "regions[1].mask.coco_rle"),
        "mask outside its box": (
            ask(mask=outside, box=types_pb2.Box(x_max=1, y_max=1)),
            Kind.INVALID_ARGUMENT,
            "regions[1].mask",
        ),
        "unknown policy": (ask(policy=99, box=box), Kind.INVALID_ARGUMENT, "crop_policy"),
    }


async def test_bad_input_names_its_field_and_the_next_call_works(service, pixels, regions):
    for name, (request, kind, field) in broken_requests(pixels, regions).items():
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await service.EmbedRegions(request)
        typed = from_rpc_error(error.value)
        assert (typed.kind, typed.field) == (kind, field), name
    for texts in ([], ["a", "  "], ["\u200b\x07"], ["x"] * 1001, ["x" * 10_001]):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await service.EmbedTexts(embed_pb2.EmbedTextsRequest(texts=texts))
        assert from_rpc_error(error.value).field.startswith("texts")
    good = types_pb2.Image(encoded=encode_image(pixels))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await service.EmbedImages(embed_pb2.EmbedImagesRequest(images=[good, types_pb2.Image(encoded=b"no")]))
    assert from_rpc_error(error.value).field == "images[1].encoded"
    await service.EmbedRegions(region_request(pixels, *regions))


async def test_image_headers_are_not_read_on_the_event_loop(service, pixels, regions, monkeypatch):
    """Sixty kilobytes of a PNG's text chunks take a fifth of a second to unpack."""

    readers = []

    def read(image, limits):
        readers.append(threading.current_thread())
        return 0

    monkeypatch.setattr("services.embedder.servicer.decoded_bytes", read)
    request = region_request(pixels, *regions)
    await service.EmbedRegions(request)
    await service.EmbedImages(embed_pb2.EmbedImagesRequest(images=[request.image] * 2))
    assert len(readers) == 3
    assert threading.current_thread() not in readers
