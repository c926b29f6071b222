"""Every crop policy against the same thing done one region at a time with Pillow."""

import math
import resource

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from services.embedder.crop_plan import Window, crop_window, pixel_box
from services.embedder.crops import CLIP_MEAN, CLIP_STD, CropPolicy, crop_regions
from services.embedder.resample import groups_by_size, resize_image

POLICIES = [policy for policy in CropPolicy if policy is not CropPolicy.ENSEMBLE]
SIZE = 64
BOXES = torch.tensor(
    [
        [10.0, 20.0, 90.0, 70.0],
        [0.0, 0.0, 160.0, 120.0],  # the whole image: every square window reaches beyond it
        [150.3, 100.7, 160.0, 120.0],  # a corner
        [40.5, 30.5, 44.5, 37.5],  # small: enlarged
        [70.0, 0.0, 75.0, 120.0],  # a thin pole
    ]
)


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """Smooth colours, sharp edges and noise, 120 x 160."""
    y, x = np.mgrid[0:120, 0:160]
    rng = np.random.default_rng(0)
    smooth = np.stack([x * 1.5, y * 2.0, 128 + 100 * np.sin(x / 7) * np.cos(y / 9)])
    smooth[:, 30:60, 40:100] = 255 - smooth[:, 30:60, 40:100]
    return torch.from_numpy((smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def masks() -> torch.Tensor:
    """One ellipse in each box."""
    y, x = torch.meshgrid(torch.arange(120) + 0.5, torch.arange(160) + 0.5, indexing="ij")
    x0, y0, x1, y1 = (column.view(-1, 1, 1) for column in BOXES.unbind(1))
    return ((x - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((y - (y0 + y1) / 2) / (y1 - y0)) ** 2 < 0.25


def pillow_crop(
    image: torch.Tensor, mask: torch.Tensor | None, box: Window, policy: CropPolicy
) -> np.ndarray:
    """The plain way: crop, resize and composite one region with Pillow; (3, SIZE, SIZE), values 0..255."""
    _, height, width = image.shape
    window = crop_window(box, policy, height, width, SIZE)
    mean = tuple(round(255 * value) for value in CLIP_MEAN)
    canvas = Image.new("RGB", (window.width, window.height), mean)
    canvas.paste(Image.fromarray(image.permute(1, 2, 0).numpy()), (-window.left, -window.top))
    crop = canvas.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    outline = np.zeros((height, width), np.uint8)
    inside = (slice(box.top, box.bottom), slice(box.left, box.right))
    outline[inside] = 255 if mask is None else 255 * mask.numpy()[inside].astype(np.uint8)
    alpha = Image.new("L", canvas.size)
    alpha.paste(Image.fromarray(outline), (-window.left, -window.top))
    alpha = alpha.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    match policy:
        case CropPolicy.MASKED_WHITE | CropPolicy.MASKED_BLACK | CropPolicy.MASKED_MEAN:
            fill = {"masked_white": (255,) * 3, "masked_black": (0,) * 3, "masked_mean": mean}[policy]
            crop = Image.composite(crop, Image.new("RGB", crop.size, fill), alpha)
        case CropPolicy.BLUR:
            crop = Image.composite(crop, Image.fromarray(true_gaussian(np.asarray(crop), SIZE / 16)), alpha)
        case CropPolicy.RED_CIRCLE:
            crop = draw_circle(crop, box, window)
    return np.asarray(crop, np.float32).transpose(2, 0, 1)


def true_gaussian(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Pillow's own GaussianBlur is three box blurs; this is the sum it approximates, pixel by pixel."""
    position = np.arange(len(pixels))
    kernel = np.exp(-0.5 * ((position[:, None] - position) / sigma) ** 2)
    kernel /= kernel.sum(1, keepdims=True)
    return np.einsum("ij,jkc,lk->ilc", kernel, pixels, kernel).round().astype(np.uint8)


def draw_circle(crop: Image.Image, box: Window, window: Window) -> Image.Image:
    """An ellipse around the box, drawn at eight times the size and shrunk."""
    fine, line = 8, max(1.5, SIZE / 48)
    scale = SIZE / window.width * fine
    cx, cy = (
        ((box.left + box.right) / 2 - window.left) * scale,
        ((box.top + box.bottom) / 2 - window.top) * scale,
    )
    a, b = (side / math.sqrt(2) * scale for side in (box.width, box.height))
    big = Image.new("L", (SIZE * fine, SIZE * fine))
    half = line * fine / 2
    draw = ImageDraw.Draw(big)
    draw.ellipse((cx - a - half, cy - b - half, cx + a + half, cy + b + half), fill=255)
    if min(a, b) > half:
        draw.ellipse((cx - a + half, cy - b + half, cx + a - half, cy + b - half), fill=0)
    alpha = big.resize((SIZE, SIZE), Image.Resampling.BOX)
    return Image.composite(Image.new("RGB", crop.size, (255, 0, 0)), crop, alpha)


def centred_cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (x.ravel() - x.mean() for x in (a, b))
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def to_levels(crops: torch.Tensor) -> np.ndarray:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return ((crops * std + mean) * 255).numpy()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("with_masks", [True, False])
def test_policy_matches_pillow(image, masks, policy, with_masks):
    chosen = masks if with_masks else None
    crops = to_levels(crop_regions(image, BOXES, chosen, policy, SIZE))
    for index, box in enumerate(BOXES.tolist()):
        mask = masks[index] if with_masks else None
        expected = pillow_crop(image, mask, pixel_box(box, 120, 160), policy)
        floor = (
            0.99 if policy is CropPolicy.RED_CIRCLE else 0.9999
        )  # a polygon's edge is not our distance field
        assert centred_cosine(crops[index], expected) >= floor
        assert np.abs(crops[index] - expected).mean() < (2.5 if policy is CropPolicy.RED_CIRCLE else 0.6)


@pytest.mark.parametrize("policy", POLICIES)
def test_masks_cut_to_their_boxes_are_the_same(image, masks, policy):
    inner = [pixel_box(box, 120, 160) for box in BOXES.tolist()]
    local = [mask[b.top : b.bottom, b.left : b.right] for mask, b in zip(masks, inner, strict=True)]
    assert torch.equal(
        crop_regions(image, BOXES, masks, policy, SIZE), crop_regions(image, BOXES, local, policy, SIZE)
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_a_region_does_not_depend_on_its_neighbours(image, masks, policy):
    together = crop_regions(image, BOXES, masks, policy, SIZE)
    for index in range(len(BOXES)):
        alone = crop_regions(image, BOXES[index : index + 1], masks[index : index + 1], policy, SIZE)
        assert torch.allclose(together[index], alone[0], atol=0.02)


def test_masked_policies_hide_everything_outside_the_object(image, masks):
    changed = torch.where(masks[0], image, 255 - image)
    for policy in (CropPolicy.MASKED_WHITE, CropPolicy.MASKED_BLACK, CropPolicy.MASKED_MEAN):
        hidden = to_levels(crop_regions(image, BOXES[:1], masks[:1], policy, SIZE))[0]
        other = to_levels(crop_regions(changed, BOXES[:1], masks[:1], policy, SIZE))[0]
        corner = np.s_[:, :4, :4]
        assert np.abs(hidden[corner] - other[corner]).max() < 0.01
        assert np.ptp(hidden[corner].reshape(3, -1), axis=1).max() < 0.01


def test_bad_input_is_refused(image, masks):
    with pytest.raises(ValueError, match="ensemble"):
        crop_regions(image, BOXES, masks, CropPolicy.ENSEMBLE, SIZE)
    with pytest.raises(ValueError, match="5 boxes need as many masks, not 2"):
        crop_regions(image, BOXES, masks[:2], CropPolicy.BLUR, SIZE)
    with pytest.raises(ValueError, match="uint8"):
        crop_regions(image.float(), BOXES, None, CropPolicy.BBOX, SIZE)
    with pytest.raises(ValueError, match="its box is"):
        crop_regions(image, BOXES[:1], [masks[0]], CropPolicy.BLUR, SIZE)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 1), (3, 2)])
@pytest.mark.parametrize("policy", [p for p in CropPolicy if p is not CropPolicy.ENSEMBLE])
def test_tiny_images_are_cropped(policy, shape):
    image = torch.full((3, *shape), 128, dtype=torch.uint8)
    box = torch.tensor([[0.0, 0.0, shape[1], shape[0]]])
    crop = crop_regions(image, box, None, policy, 64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert crop.isfinite().all()
    if policy is CropPolicy.BBOX:  # the others pad to a square
        assert (crop - 128 / 255).abs().max() < 1e-6


def test_no_regions_give_an_empty_batch(image):
    assert crop_regions(image, torch.zeros(0, 4), None, CropPolicy.BLUR, SIZE).shape == (0, 3, SIZE, SIZE)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("shape", [(120, 160), (160, 120), (64, 64), (30, 200), (7, 5)])
def test_whole_image_matches_open_clip(image, mode, shape):
    from open_clip.transform import image_transform

    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(shape[::-1])
    transform = image_transform(SIZE, False, CLIP_MEAN, CLIP_STD, resize_mode=mode, interpolation="bicubic")
    expected = to_levels(transform(resized))
    ours = resize_image(np.array(resized), SIZE, mode).numpy()
    assert np.abs(ours - expected).mean() < 0.6
    assert centred_cosine(ours, expected) >= 0.9999


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=1, max_size=60))
def test_groups_are_a_partition_that_pads_little(sizes):
    groups = groups_by_size(sizes, 4, SIZE)
    assert sorted(index for group in groups for index in group) == list(range(len(sizes)))
    for group in groups:
        heights, widths = [sizes[i][0] for i in group], [sizes[i][1] for i in group]
        assert max(heights) * max(widths) * len(group) <= 2 * sum(h * w for h, w in (sizes[i] for i in group))


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(*[st.floats(-50, 250, allow_nan=False)] * 4),
    st.integers(1, 200),
    st.integers(1, 200),
    st.sampled_from(POLICIES),
)
def test_windows_hold_their_box(box, height, width, policy):
    inner = pixel_box(box, height, width)
    assert 0 <= inner.left < inner.right <= width
    assert 0 <= inner.top < inner.bottom <= height
    window = crop_window(inner, policy, height, width, SIZE)
    assert window.left <= inner.left
    assert window.right >= inner.right
    assert window.top <= inner.top
    assert window.bottom >= inner.bottom
    assert policy is CropPolicy.BBOX or window.width == window.height


@pytest.mark.parametrize(
    ("long_side", "size", "window"),
    [(20, 224, 60), (60, 224, 128), (200, 224, 260), (12, 80, 36), (30, 80, 46), (60, 80, 78)],
)
def test_crops_of_small_objects_get_context_while_it_costs_no_resolution(long_side, size, window):
    box = Window(300, 300, 300 + long_side, 310)
    for policy in (CropPolicy.BLUR, CropPolicy.CONTEXT):
        assert crop_window(box, policy, 1000, 1000, size).width == window


def test_the_square_around_a_panorama_costs_no_more_than_the_panorama():
    wide = torch.full((3, 20, 60_000), 200, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    crops = crop_regions(wide, torch.tensor([[0.0, 0.0, 60_000.0, 20.0]]), None, CropPolicy.CONTEXT, SIZE)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # KiB
    shown = crops * torch.tensor(CLIP_STD).view(3, 1, 1) + torch.tensor(CLIP_MEAN).view(3, 1, 1)
    assert torch.allclose(shown[0, :, 0, 0], torch.tensor(CLIP_MEAN), atol=0.003)  # above it: the mean colour


def test_halving_an_image_rounds_halves_as_pillow_does() -> None:
    """Bilinear weights of 1/8 and 3/8 make an exact half of every eighth value."""
    pixels = np.random.default_rng(0).integers(0, 256, (2 * SIZE, 2 * SIZE, 3), np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    image, box = torch.from_numpy(pixels).permute(2, 0, 1), torch.tensor([[0.0, 0.0, 2 * SIZE, 2 * SIZE]])
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear"}
    found = crop_regions(image, box, None, CropPolicy.BBOX, SIZE, **plain)[0] * 255
    assert np.array_equal(found.round().permute(1, 2, 0).numpy(), expected)
