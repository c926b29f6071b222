"""Queries: searching collections and single images, segmenting, embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from regionsearch import defaults
from regionsearch.client.image_inputs import (
    Box,
    ImageInput,
    Negative,
    Point,
    box_of,
    negatives_of,
    points_of,
    read_image_input,
    read_optional,
)
from regionsearch.client.operations.base import (
    GrpcCall,
    HttpRequest,
    Operation,
    answer,
    document,
    given,
    path_of,
)
from regionsearch.schemas.requests.inference import EmbeddingsBody, EverythingOptions, SegmentBody
from regionsearch.schemas.requests.searches import (
    Finder,
    Include,
    Level,
    SearchBody,
    SearchInclude,
    Style,
    WithinBody,
)
from regionsearch.schemas.responses.regions import SegmentResult
from regionsearch.schemas.responses.searches import SearchResult, WithinResult
from regionsearch.v1.region_search_pb2_grpc import RegionSearchServiceStub


def search(
    text: str | Sequence[str] | None = None,
    collection: str = defaults.COLLECTION,
    *,
    image: ImageInput | None = None,
    region_id: str | None = None,
    image_id: str | None = None,
    region_ids: Sequence[str] = (),
    image_ids: Sequence[str] = (),
    points: Sequence[Point] = (),
    box: Box | None = None,
    negatives: Sequence[Negative] = (),
    level: Level | None = None,
    group_by: Literal["image"] | None = None,
    filter: Mapping[str, Any] | None = None,
    min_score: float | None = None,
    relative_cutoff: float | None = None,
    min_relevancy: float | None = None,
    page_size: int | None = None,
    page_token: str = "",
    min_seq: int | None = None,
    exact: bool = False,
    effort: float | None = None,
    fold_similarity: float | None = None,
    diversity: float | None = None,
    codes_only: bool = False,
    all_phrases: bool = False,
    include: Sequence[SearchInclude] = (),
) -> Operation[SearchResult]:
    """Finds regions and images; words, examples and pointing combine.

    Args:
        text: One phrase, or several: then each region stands with its best phrase.
        collection: Where to look.
        image: An image of it; with points or a box, the object that they point at.
        region_id: A stored region: more like this.
        image_id: A stored image; with points or a box, the object that they point at.
        region_ids: Several stored regions: like all of them, on average.
        image_ids: Several stored images, as a whole, likewise.
        points: (x, y) or (x, y, label), pixels; label 0 is background.
        box: x_min, y_min, x_max, y_max, pixels.
        negatives: What is not meant: phrases, or an `NegativeExample` each.
        level: Regions, whole images, or both. None: whole images if the query is a whole image, else regions.
        group_by: `image`: one hit an image, its best.
        filter: Conditions as in the HTTP API: image_ids, tags, min_area, conditions, ...
        min_score: Lowest cosine, in place of the model's cut-off.
        relative_cutoff: Lowest part of the best score, 0 to 1, in place of the model's cut-off.
        min_relevancy: With negatives, lowest relevancy; 0.5 when absent.
        page_size: Most hits of a page, at most 1000; 20 when absent.
        page_token: From an earlier result.
        min_seq: See at least this write.
        exact: Look at every record, whatever index there is.
        effort: How far an approximate index looks, as a multiple of the usual.
        fold_similarity: Folds near duplicates: hits whose cosine with a better one is at least this are left
            out, and counted in its `folded_count`. Above 0, at most 1.
        diversity: Mixes hits: the weight of likeness to earlier hits against the score, 0 to 1.
        codes_only: Compares binary codes and nothing else; see `train_codes`.
        all_phrases: Grouped by image: only images in which every phrase is found, with their `others`.
        include: `mask` adds the masks; `weak` hits below the model's cut-off, whose `confident` is False;
            `others`, grouped by image with several phrases, the best regions of the other phrases.
    """
    phrases = _phrases(text)

    def body() -> SearchBody:
        query = given(image=read_optional(image), region_id=region_id, image_id=image_id, box=box_of(box))
        query |= {"texts": phrases, "points": points_of(points)}
        query |= {"region_ids": region_ids, "image_ids": image_ids}
        options = {"page_token": page_token, "exact": exact, "include": include, "all_phrases": all_phrases}
        options["codes_only"] = codes_only
        options |= given(level=level, group_by=group_by, filter=filter, page_size=page_size, effort=effort)
        options |= given(min_score=min_score, relative_cutoff=relative_cutoff, min_relevancy=min_relevancy)
        options |= given(min_seq=min_seq, fold_similarity=fold_similarity, diversity=diversity)
        return SearchBody.read({"query": query, "negatives": negatives_of(negatives)} | options)

    return Operation(
        "search",
        lambda: HttpRequest("POST", path_of(collection, "search"), body=body()),
        answer(SearchResult),
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).Search,
            lambda: body().to_proto(collection),
            lambda answer: SearchResult.from_proto(answer, phrases),
        ),
    )


def within(
    texts: str | Sequence[str],
    *,
    image: ImageInput | None = None,
    image_id: str | None = None,
    collection: str = defaults.COLLECTION,
    negatives: Sequence[Negative] = (),
    min_score: float | None = None,
    relative_cutoff: float | None = None,
    min_relevancy: float | None = None,
    include: Sequence[Include] | None = None,
    find_by: Finder | None = None,
) -> Operation[WithinResult]:
    """Scores every region of one image, sent along or stored, or has the segmenter find phrases in it.

    Args:
        texts: One phrase or several; each region goes to its best one.
        image: The image.
        image_id: A stored image instead.
        collection: Collection of the stored image.
        negatives: What is not meant: phrases, or an `NegativeExample` each.
        min_score: Lowest cosine that makes a hit, in place of the model's cut-off; of a model that is not
            calibrated the best region of each phrase is a hit.
        relative_cutoff: Lowest part of a phrase's best score that makes a hit, 0 to 1.
        min_relevancy: With negatives, lowest relevancy that makes a hit; 0.5 when absent.
        include: An empty list leaves the regions' masks out.
        find_by: `embedder` or `segmenter`. None: a segmenter that takes phrases, as SAM 3 does, finds them in
            an image that is sent along with nothing but phrases.
    """
    phrases = _phrases(texts)

    def body() -> WithinBody:
        values = given(image=read_optional(image), image_id=image_id, include=include, min_score=min_score)
        values |= given(find_by=find_by, relative_cutoff=relative_cutoff, min_relevancy=min_relevancy)
        values |= {"collection": collection, "texts": phrases, "negatives": negatives_of(negatives)}
        return WithinBody.read(values)

    return Operation(
        "within",
        lambda: HttpRequest("POST", "/v1/search-within", body=body()),
        answer(WithinResult),
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).SearchWithin,
            lambda: body().to_proto(),
            lambda answer: WithinResult.from_proto(answer, phrases),
        ),
    )


def render(
    texts: str | Sequence[str],
    *,
    image: ImageInput | None = None,
    image_id: str | None = None,
    collection: str = defaults.COLLECTION,
    style: Style = "outline",
    min_score: float | None = None,
    relative_cutoff: float | None = None,
    find_by: Finder | None = None,
) -> Operation[bytes]:
    """The image as PNG with the hits of `within` outlined in it."""

    def body() -> WithinBody:
        values = given(image=read_optional(image), image_id=image_id, min_score=min_score, render=style)
        values |= given(relative_cutoff=relative_cutoff, find_by=find_by)
        return WithinBody.read(values | {"collection": collection, "texts": _phrases(texts)})

    return Operation(
        "render",
        lambda: HttpRequest("POST", "/v1/search-within", body=body()),
        lambda response: response.content,
    )


def segment(
    *,
    image: ImageInput | None = None,
    image_id: str | None = None,
    collection: str = defaults.COLLECTION,
    points: Sequence[Point] = (),
    box: Box | None = None,
    multimask: bool = False,
    zoom: bool | None = None,
    texts: str | Sequence[str] = (),
    min_score: float | None = None,
    everything: EverythingOptions | None = None,
    features_level: int | None = None,
) -> Operation[SegmentResult]:
    """The mask of what points and box mean or phrases name; without them, of everything in the image.

    Args:
        image: The image.
        image_id: A stored image instead.
        collection: Collection of the stored image.
        points: (x, y) or (x, y, label), pixels; label 0 is background.
        box: x_min, y_min, x_max, y_max, pixels.
        multimask: The three masks of an ambiguous click.
        zoom: Looks more closely at what was found: better masks, above all of what is small, for more time.
            None: as it suits the model that is served.
        texts: One phrase or several: all objects that each names, of a model that takes phrases (SAM 3).
        min_score: Least score of what a phrase names, 0 to 1; 0.5 when absent.
        everything: How everything is looked for; without points, box and texts.
        features_level: Adds the features of each region: means over this feature map of the encoder, where 0
            is the coarsest.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for options of everything mode with points, a box or texts,
            FAILED_PRECONDITION for texts if the served model does not take them.
    """
    phrases = _phrases(texts)

    def body() -> SegmentBody:
        values = given(image=read_optional(image), image_id=image_id, box=box_of(box), zoom=zoom)
        values |= {"collection": collection, "points": points_of(points), "multimask": multimask}
        values |= given(features_level=features_level, min_score=min_score) | {"texts": phrases}
        return SegmentBody.read(
            values | {"everything": everything or (not points and box is None and not phrases)}
        )

    return Operation(
        "segment",
        lambda: HttpRequest("POST", "/v1/segment", body=body()),
        answer(SegmentResult),
    )


def embed(texts: Sequence[str] = (), *, images: Sequence[ImageInput] = ()) -> Operation[NDArray[np.float32]]:
    """Vectors of length one, shape (n, dimension): of texts, or of images."""

    def request() -> HttpRequest:
        values = {"texts": texts, "images": [read_image_input(one) for one in images]}
        return HttpRequest("POST", "/v1/embeddings", body=EmbeddingsBody.read(values))

    return Operation("embed", request, lambda response: np.asarray(response.json()["vectors"], np.float32))


def export_hits(
    text: str | Sequence[str],
    collection: str = defaults.COLLECTION,
    *,
    limit: int = 100,
    min_score: float | None = None,
    relative_cutoff: float | None = None,
    include: Sequence[Literal["weak"]] = (),
) -> Operation[dict[str, Any]]:
    """The hits of a search as a COCO document with masks; the phrases are its categories.

    Args:
        text: One phrase or several.
        collection: Where to look.
        limit: Most hits, at most 1000.
        min_score: Lowest cosine, in place of the model's cut-off.
        relative_cutoff: Lowest part of the best score, 0 to 1, in place of the model's cut-off.
        include: `weak` adds hits below the model's cut-off.
    """
    values = {"query": {"texts": _phrases(text)}, "level": "region", "page_size": limit, "include": include}
    body = SearchBody.read(values | given(min_score=min_score, relative_cutoff=relative_cutoff))
    path = path_of(collection, "search")
    return Operation(
        "export_hits",
        lambda: HttpRequest("POST", path, body=body, params={"format": "coco"}),
        document,
    )


def _phrases(text: str | Sequence[str] | None) -> list[str]:
    if text is None:
        return []
    return [text] if isinstance(text, str) else list(text)
