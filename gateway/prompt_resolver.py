"""From a click or a drawn box to a region: among those that are stored, or by asking the segmenter."""

from __future__ import annotations

import time
from collections.abc import Sequence

from gateway.catalog import Catalog
from gateway.service_clients import Services
from gateway.settings import GatewaySettings
from regionsearch.defaults import COLLECTION as DEFAULT
from regionsearch.errors import invalid
from regionsearch.masks import Size
from regionsearch.prompts import check_box, check_point, merge_masks, read_box, select_by_prompt
from regionsearch.v1 import search_pb2, segment_pb2, types_pb2

MODEL_AGE_S = 60.0  # how long what the segmenter says of its model is believed


def box_of(box: types_pb2.Box) -> tuple[float, float, float, float]:
    """A box as x_min, y_min, x_max, y_max."""
    return box.x_min, box.y_min, box.x_max, box.y_max


def label_of(point: types_pb2.Point) -> int:
    """A click without a label is a foreground click."""
    return point.label if point.HasField("label") else 1


def select_stored(
    records: Sequence[search_pb2.Record], prompt: segment_pb2.Prompt, size: Size, field: str = ""
) -> list[int]:
    """Segment-then-select: the stored regions that points and a box mean.

    See `regionsearch.prompts.select_by_prompt`.

    Args:
        records: Regions of one image, with masks.
        prompt: Points and box; its mask does not matter.
        size: (height, width) of the image.
        field: Prefix of the prompt's field names in the caller's request, such as ``query.``.

    Returns:
        Indices of the chosen regions, ascending; several of them are one object. Empty when nothing fits.

    Raises:
        RegionSearchError: INVALID_ARGUMENT when there is neither a foreground point nor a box, or one is not
            on the image.
    """
    if not prompt.points and not prompt.HasField("box"):
        raise invalid(f"{field}points", "point at something: give points or a box")
    for index, point in enumerate(prompt.points):
        check_point((point.x, point.y), size, f"{field}points[{index}]")
    if prompt.HasField("box"):
        check_box(read_box(prompt.box, f"{field}box"), size, f"{field}box")
    return select_by_prompt(
        [record.mask.coco_rle for record in records],
        [box_of(record.box) for record in records],
        [record.area for record in records],
        size,
        [(point.x, point.y) for point in prompt.points],
        [label_of(point) for point in prompt.points],
        box_of(prompt.box) if prompt.HasField("box") else None,
    )


def merged_mask(records: Sequence[search_pb2.Record]) -> types_pb2.Mask:
    """The union of the masks of some regions of one image."""
    height, width = records[0].mask.height, records[0].mask.width
    counts = merge_masks([record.mask.coco_rle for record in records], (height, width))
    return types_pb2.Mask(height=height, width=width, coco_rle=counts)


class PromptResolver:
    """Asks the segmenter, about images that are sent or stored."""

    def __init__(self, services: Services, catalog: Catalog, settings: GatewaySettings) -> None:
        self._services = services
        self._catalog = catalog
        self._selection = settings.selection
        self._takes_phrases: tuple[bool, float] | None = None  # and when that was asked

    async def segment(
        self, request: segment_pb2.SegmentRequest, collection: str = ""
    ) -> segment_pb2.SegmentResponse:
        """Passes a request on.

        Raises:
            RegionSearchError: NOT_FOUND for a collection that does not exist, where one is named.
        """
        call = self._services.segmenter.call(self._services.segment.Segment, request)
        if collection in ("", DEFAULT):  # which is there, and masks need nothing of it
            return await call
        return await self._catalog.with_collection(collection, lambda _: call)

    async def regions(self, image: types_pb2.Image) -> segment_pb2.SegmentResponse:
        """Everything in an image that an ingest would keep of it."""
        options = segment_pb2.EverythingOptions(selection=self._selection.to_proto())
        return await self.segment(segment_pb2.SegmentRequest(image=image, everything=options))

    async def takes_phrases(self) -> bool:
        """Whether the segmenter finds phrases, as it said within the last minute."""
        now = time.monotonic()
        if self._takes_phrases is None or now - self._takes_phrases[1] > MODEL_AGE_S:
            services = self._services
            request = segment_pb2.SegmentServiceGetModelRequest()
            served = await services.segmenter.call(services.segment.GetModel, request, retry_overload=True)
            self._takes_phrases = served.takes_phrases, now
        return self._takes_phrases[0]

    async def object_at(self, image: types_pb2.Image, prompt: segment_pb2.Prompt) -> types_pb2.Region:
        """The one object that a prompt means in an image.

        Raises:
            RegionSearchError: INVALID_ARGUMENT when there is nothing.
        """
        # One click is ambiguous: of the three masks that the model offers, the best one that is not empty.
        ambiguous = len(prompt.points) == 1 and not prompt.HasField("box")
        prompts = segment_pb2.Prompts(prompts=[prompt], multimask=ambiguous)
        answer = await self.segment(segment_pb2.SegmentRequest(image=image, prompts=prompts))
        candidates = [c for result in answer.results for c in result.candidates if c.area > 0]
        if not candidates:
            field = "query.points" if prompt.points else "query.box"
            raise invalid(field, "there is nothing where this points; point at an object")
        return candidates[0]

    async def stored_image(self, collection: str, image_id: str) -> types_pb2.Image:
        """The image of a stored image."""
        return types_pb2.Image(encoded=await self._catalog.images.content(collection, image_id))
