"""What the searcher is told about an image: names made from its content, and nothing else to look up."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gateway.vectors import features_output
from regionsearch.errors import invalid
from regionsearch.idempotency import IDEMPOTENCY_KEY, IDEMPOTENCY_REQUEST, check_same_request
from regionsearch.images import EncodedImage, ImageLimits, image_id
from regionsearch.rpc.calls import chunked
from regionsearch.tensors import tensor_from_proto
from regionsearch.v1 import embed_pb2, region_search_pb2, search_pb2, segment_pb2, types_pb2

HIDDEN = (IDEMPOTENCY_KEY, IDEMPOTENCY_REQUEST)
"""Attributes that callers neither see nor set nor ask for."""

_MAX_KEY = 255
_MAX_NAME = 1000
_BIDIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class ImageFile:
    """An image's file.

    Attributes:
        data: Its bytes.
        image_id: Their SHA-256.
        content_type: By its header.
        facts: Attributes that it states itself: when, with what and where it was taken.
    """

    data: bytes
    image_id: str
    content_type: str
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def message(self) -> types_pb2.Image:
        """As the services take it."""
        return types_pb2.Image(encoded=self.data)


def read_file(data: bytes, limits: ImageLimits, *, facts: bool = True) -> ImageFile:
    """An image's file, after a look at its header only; the segmenter is the first one to decode the rest.

    Args:
        data: Its bytes.
        limits: What is refused.
        facts: Whether what it states about itself becomes attributes.

    Raises:
        RegionSearchError: UNSUPPORTED_IMAGE, INVALID_ARGUMENT or TOO_LARGE.
    """
    with EncodedImage(data, limits, "image.encoded") as image:
        stated = image.facts() if facts else {}
        return ImageFile(data, image_id(data), image.header.content_type, stated)


@dataclass(frozen=True)
class IdempotencyKey:
    """A caller's name for one request, under which it may be repeated.

    Attributes:
        key: The name.
        request: Digest of what the request sends; None for that of its one image.
    """

    key: str
    request: str | None = None

    def attributes(self, image_id: str) -> dict[str, str]:
        """What is kept of it with an image that the request makes."""
        return {IDEMPOTENCY_KEY: self.key, IDEMPOTENCY_REQUEST: self.request or image_id}

    def check(self, kept: Mapping[str, str], image_id: str) -> None:
        """Refuses the key where it belongs to another request already.

        Args:
            kept: Attributes of an image that was made under this key.
            image_id: The image of the present request.

        Raises:
            RegionSearchError: ALREADY_EXISTS.
        """
        check_same_request(kept, self.request or image_id)


def checked_key(key: str | None) -> str | None:
    """An idempotency key as it may be kept with an image.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for one that is too long or cannot be printed.
    """
    if key is not None and not (0 < len(key) <= _MAX_KEY and key.isprintable()):
        raise invalid("idempotency-key", f"an idempotency key has 1 to {_MAX_KEY} printable characters")
    return key


def check_reserved(names: Iterable[str], field: str = "attributes") -> None:
    """Refuses what callers can neither set nor see nor ask for.

    Raises:
        RegionSearchError: INVALID_ARGUMENT.
    """
    for name in names:
        if name in HIDDEN:
            raise invalid(field, f"{field}: the attribute {name} is reserved; choose another name")


def check_filter(wanted: search_pb2.Filter) -> None:
    """Refuses a filter by what callers cannot see.

    Raises:
        RegionSearchError: INVALID_ARGUMENT.
    """
    check_reserved(wanted.attributes, "filter.attributes")
    tests = [test for one in wanted.conditions for test in (one, *one.any_of)]
    check_reserved((test.attribute for test in tests), "filter.conditions")


def hide_key(image: search_pb2.StoredImage) -> None:
    """Takes the hidden attributes out of what a caller is told about an image."""
    for name in HIDDEN:
        if name in image.attributes:
            del image.attributes[name]


def clean_name(name: str) -> str:
    """What a user calls an image, as it was sent but for what could deceive or do harm where it is shown.

    Control characters and those that reverse the direction of writing are left out. A relative path is kept,
    so that images of one name in several folders can be told apart; what leads out of its folder is not:
    roots, drives, `.` and `..`. At most 1,000 characters, of a longer path its end.
    """
    kept = "".join(c for c in name if unicodedata.category(c) not in ("Cc", "Cs") and c not in _BIDIRECTIONAL)
    parts = [part for part in kept.replace("\\", "/").split("/") if part.strip() not in ("", ".", "..")]
    if len(parts) > 1 and re.fullmatch("[A-Za-z]:", parts[0]):
        del parts[0]
    if len(parts) > 1:
        return "/".join(parts)[-_MAX_NAME:].lstrip("/")
    return "".join(parts)[:_MAX_NAME]


def additions(
    request: region_search_pb2.IngestImageRequest, file: ImageFile, image: search_pb2.StoredImage
) -> search_pb2.ImageUpdate | None:
    """What a request says about an image that is known already, and is new; None for nothing.

    Tags are added, attributes set; a name is taken by an image that has none, the facts of its file by one
    that has none of them.
    """
    update = search_pb2.ImageUpdate(image_id=image.image_id)
    update.add_tags.extend(tag for tag in dict.fromkeys(request.tags) if tag not in image.tags)
    facts = {} if any(name in image.attributes for name in file.facts) else file.facts
    for name, value in {**facts, **request.attributes}.items():
        if image.attributes.get(name) != value:
            update.set_attributes[name] = value
    name = clean_name(request.name)
    if name and not image.name:
        update.name = name
    return update if update.add_tags or update.set_attributes or update.HasField("name") else None


def segment_request(
    request: region_search_pb2.IngestImageRequest,
    collection: search_pb2.Collection,
    file: ImageFile,
    selection: segment_pb2.SelectionOptions,
) -> segment_pb2.SegmentRequest:
    """What the segmenter is asked about an image.

    Args:
        request: Its options of everything mode hold before the collection's, and both before `selection`.
        collection: Where the image goes.
        file: The image.
        selection: Which regions are kept.
    """
    everything = (request if request.HasField("everything") else collection).everything
    # Hundreds of prompts: whoever waits for them, a click on another image goes first.
    message = segment_pb2.SegmentRequest(
        image=file.message,
        everything=everything,
        output=features_output(collection),
        priority=types_pb2.PRIORITY_BULK,
    )
    message.everything.selection.CopyFrom(selection)
    message.everything.selection.MergeFrom(everything.selection)
    return message


def embed_requests(
    image: types_pb2.Image,
    regions: Sequence[types_pb2.Region | search_pb2.Record],
    collection: search_pb2.Collection,
    priority: types_pb2.Priority.ValueType,
    chunk: int,
) -> Iterator[embed_pb2.EmbedRegionsRequest]:
    """Requests for the vectors of an image: the whole of it in the first, up to `chunk` regions in each."""
    for number, some in enumerate(list(chunked(regions, chunk)) or [[]]):
        yield embed_pb2.EmbedRegionsRequest(
            image=image,
            regions=[embed_pb2.RegionCut(box=region.box, mask=region.mask) for region in some],
            crop_policy=collection.model.crop_policy,
            priority=priority,
            include_image=number == 0,
        )


def embedded_vectors(answer: embed_pb2.EmbedRegionsResponse) -> np.ndarray:
    """The vectors of an answer, that of the whole image first where it was asked for."""
    vectors = tensor_from_proto(answer.vectors, "vectors", ndim=2)
    if not answer.HasField("image_vector"):
        return vectors
    return np.concatenate([tensor_from_proto(answer.image_vector, "image_vector", ndim=2), vectors])


def stored_image(
    request: region_search_pb2.IngestImageRequest,
    file: ImageFile,
    segmented: segment_pb2.SegmentResponse,
    key: IdempotencyKey | None,
) -> search_pb2.StoredImage:
    """The image's own entry."""
    return search_pb2.StoredImage(
        image_id=file.image_id,
        name=clean_name(request.name),
        width=segmented.image_width,
        height=segmented.image_height,
        content_type=file.content_type,
        size_bytes=len(file.data),
        tags=list(dict.fromkeys(request.tags)),
        attributes={**file.facts, **request.attributes, **(key.attributes(file.image_id) if key else {})},
    )


def records(identity: str, segmented: segment_pb2.SegmentResponse) -> list[search_pb2.Record]:
    """The record of the whole image, then those of its regions, best first."""
    width, height = segmented.image_width, segmented.image_height
    whole = search_pb2.Record(
        record_id=f"{identity}-image",
        image_id=identity,
        level=search_pb2.LEVEL_IMAGE,
        box=types_pb2.Box(x_max=width, y_max=height),
        area=width * height,
    )
    regions = [
        search_pb2.Record(
            record_id=f"{identity}-r{index:03d}",
            image_id=identity,
            level=search_pb2.LEVEL_REGION,
            box=region.box,
            mask=region.mask,
            area=region.area,
            predicted_iou=region.predicted_iou,
            stability_score=region.stability_score,
        )
        for index, region in enumerate(segmented.regions)
    ]
    return [whole, *regions]
