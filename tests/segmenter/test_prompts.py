"""Prompts against SamPredictor."""

from __future__ import annotations

import asyncio
import threading
import weakref

import numpy as np
import pytest
from numpy.typing import NDArray
from segment_anything import SamPredictor

from regionsearch.errors import Kind, RegionSearchError
from services.runtime.batch import BatchSettings
from services.segmenter.backends.sam import SamBackend
from services.segmenter.call_context import LazyImage, Prompted
from services.segmenter.engine import SegmentEngine
from services.segmenter.prompts import Prompt, RoughMask, group_prompts, mask_prompt


def prompt(points: list[tuple[float, float]], labels: list[int] | None = None, **more: object) -> Prompt:
    coords = np.array(points, np.float64).reshape(-1, 2)
    return Prompt(coords, np.array([1] * len(points) if labels is None else labels, np.int32), **more)  # type: ignore[arg-type]


def rough(mask: NDArray[np.bool_]) -> RoughMask:
    return RoughMask((mask.shape[0], mask.shape[1]), lambda: mask)


def ask(backend: SamBackend, image: NDArray[np.uint8], prompts: list[Prompt], multimask: bool) -> Prompted:
    async def main() -> Prompted:
        engine = SegmentEngine(backend, BatchSettings(max_batch=4), cache_bytes=1 << 24)
        try:
            return await engine.prompts(LazyImage("image", lambda: image), prompts, multimask=multimask)
        finally:
            await engine.close()

    return asyncio.run(main())


@pytest.mark.parametrize("multimask", [False, True])
def test_every_kind_of_prompt_gives_the_reference_masks(
    pocket: SamBackend, coffee: NDArray[np.uint8], multimask: bool
) -> None:
    logits = np.random.default_rng(0).normal(0, 8, pocket.mask_size).astype(np.float32)
    prompts = [
        prompt([(100, 80)]),
        prompt([(10, 20)]),
        prompt([(100, 80), (10, 10), (150, 90)], [1, 0, 1]),
        prompt([], box=(20, 30, 200, 150)),
        prompt([(100, 80)], box=(20, 30, 200, 150)),
        prompt([(100, 80), (5, 5)], [1, 0], mask_logits=logits),
        prompt([], mask_logits=logits),
        *[prompt([(30 + 10 * i, 60)]) for i in range(6)],
    ]
    found = ask(pocket, coffee, prompts, multimask)
    predictor = SamPredictor(pocket.model)
    predictor.set_image(coffee)
    for asked, answer in zip(prompts, found.answers, strict=True):
        masks, ious, low_res = predictor.predict(
            asked.points if len(asked.points) else None,
            asked.labels if len(asked.points) else None,
            None if asked.box is None else np.array(asked.box),
            None if asked.mask_logits is None else asked.mask_logits[None],
            multimask_output=multimask,
        )
        order = np.argsort(-ious, kind="stable")
        assert len(answer) == (3 if multimask else 1)
        ranks = [candidate.region.rank for candidate in answer]
        assert ranks == sorted(ranks, reverse=True)
        by_iou = sorted(answer, key=lambda candidate: -candidate.region.predicted_iou)
        for candidate, place in zip(by_iou, order, strict=True):
            assert candidate.region.predicted_iou == pytest.approx(ious[place], abs=1e-4)
            np.testing.assert_allclose(candidate.low_res_logits, low_res[place], atol=1e-3)
            assert (candidate.region.runs.to_mask() != masks[place]).mean() < 1e-4


def test_a_mask_prompt_covers_the_image_as_in_the_input_of_the_model(
    pocket: SamBackend, coffee: NDArray[np.uint8]
) -> None:
    mask = np.zeros(coffee.shape[:2], bool)
    mask[:, 150:] = True  # the right half of 200 x 300
    logits = mask_prompt(prompt([], mask=rough(mask)), pocket.prepare(coffee)[1], pocket.mask_size)
    side = pocket.mask_size[0]
    assert (logits[: side * 2 // 3 - 1, side // 2 + 1 :] == 10).all()
    assert (logits[: side * 2 // 3 - 1, : side // 2 - 1] == -10).all()
    assert (logits[side * 2 // 3 + 1 :] == -10).all()  # below the image


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (prompt([], mask=rough(np.ones((3, 3), bool))), "prompts.prompts[1].mask"),
        (prompt([], mask_logits=np.ones((3, 3), np.float32)), "prompts.prompts[1].mask_logits"),
    ],
)
def test_masks_of_another_size_are_refused(
    untrained: SamBackend, coffee: NDArray[np.uint8], bad: Prompt, field: str
) -> None:
    with pytest.raises(RegionSearchError) as caught:
        ask(untrained, coffee, [prompt([(1, 1)]), bad], False)
    assert caught.value.kind is Kind.INVALID_ARGUMENT
    assert caught.value.field == field


def test_rough_masks_are_in_memory_one_at_a_time(untrained: SamBackend, coffee: NDArray[np.uint8]) -> None:
    """A few bytes each on the wire, a thousand of them would fill any memory; and the event loop goes on."""
    alive: list[weakref.ref[NDArray[np.bool_]]] = []

    def decode() -> NDArray[np.bool_]:
        assert threading.current_thread() is not threading.main_thread()
        assert not any(mask() is not None for mask in alive)
        mask = np.ones(coffee.shape[:2], bool)
        alive.append(weakref.ref(mask))
        return mask

    mask = RoughMask((coffee.shape[0], coffee.shape[1]), decode)
    assert len(ask(untrained, coffee, [prompt([], mask=mask)] * 5, False).answers) == 5
    assert len(alive) == 5


def test_huge_mask_logits_give_finite_answers(untrained: SamBackend, coffee: NDArray[np.uint8]) -> None:
    logits = np.full(untrained.mask_size, 3e38, np.float32)
    ((answer,),) = ask(untrained, coffee, [prompt([], mask_logits=logits)], False).answers
    assert np.isfinite(answer.region.predicted_iou)
    assert np.isfinite(answer.low_res_logits).all()


def test_mask_prompts_of_many_pixels_are_read_in_several_groups() -> None:
    large = RoughMask((7000, 7000), lambda: np.zeros((1, 1), bool))
    prompts = [prompt([(1, 1)]), *[prompt([(1, 1)], mask=large)] * 6, prompt([(2, 2)])]
    groups = group_prompts(prompts)
    assert sorted(place for group in groups for place in group) == list(range(8))
    assert [0, 7] in groups
    assert max(len(group) for group in groups) == 2


def test_an_unreadable_mask_prompt_fails_its_own_call_only(
    pocket: SamBackend, coffee: NDArray[np.uint8]
) -> None:
    def broken() -> NDArray[np.bool_]:
        raise RegionSearchError(Kind.INVALID_ARGUMENT, "broken")

    size = coffee.shape[0], coffee.shape[1]
    with pytest.raises(RegionSearchError, match="broken"):
        ask(pocket, coffee, [prompt([(1, 1)], mask=RoughMask(size, broken))], multimask=False)
