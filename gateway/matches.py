"""Which hits are confident, which are answered, and which phrases are found in an image: the one place of it.

A model's cut-off is measured by `regionsearch evaluate --calibrate` and stored in its manifest; the embedder
serves it. It is about words and regions: a phrase fits a region or does not, while likeness to an example,
and what a whole image is about, are matters of degree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from gateway.records import hide_key
from gateway.service_clients import Services
from regionsearch.errors import invalid
from regionsearch.v1 import region_search_pb2, search_pb2

SearchRequest: TypeAlias = region_search_pb2.RegionSearchServiceSearchRequest


def judge(hit: search_pb2.Hit, cut_off: float | None) -> None:
    """Sets whether a hit is confident, unless that is not known."""
    if cut_off is not None and hit.record.level == search_pb2.LEVEL_REGION:
        hit.confident = hit.score >= cut_off
    if hit.HasField("best_region"):
        judge(hit.best_region, cut_off)


def says_scores(request: SearchRequest) -> bool:
    """Whether a request says itself which scores are kept, in place of the model's cut-off."""
    return request.HasField("min_score") or request.HasField("relative_cutoff")


def is_match(hit: search_pb2.Hit, request: SearchRequest) -> bool:
    """Whether a judged hit that passed the request's own thresholds counts as found."""
    return says_scores(request) or hit.confident or not hit.HasField("confident")


def wants_others(request: region_search_pb2.RegionSearchServiceSearchRequest) -> bool:
    """Whether hits get the best regions of the other phrases.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for all_phrases of a search that is not grouped by image.
    """
    if request.all_phrases and request.group_by != search_pb2.GROUP_BY_IMAGE:
        raise invalid("all_phrases", "all_phrases is about images: group by image, too")
    return (
        (request.include_others or request.all_phrases)
        and request.group_by == search_pb2.GROUP_BY_IMAGE
        and len(request.query.texts) > 1
    )


async def add_others(
    services: Services,
    request: region_search_pb2.RegionSearchServiceSearchRequest,
    message: search_pb2.SearchRequest,
    hits: Sequence[search_pb2.Hit],
    cut_off: float | None,
) -> list[search_pb2.Hit]:
    """Fills in `others` of hits, one for each image.

    Args:
        services: To search with.
        request: The caller's request.
        message: The search that found the hits.
        hits: The hits, with `confident` filled in.
        cut_off: The cut-off of confident matches.

    Returns:
        The hits; with all_phrases only those of images in which every phrase is found.
    """
    if not hits:
        return []
    by_phrase = search_pb2.SearchRequest()
    by_phrase.CopyFrom(message)
    by_phrase.query_mode = search_pb2.QUERY_MODE_EACH
    by_phrase.level = search_pb2.LEVEL_REGION
    by_phrase.ClearField("page_token")
    by_phrase.ClearField("relative_cutoff")  # of all images, not of these
    by_phrase.filter.ClearField("image_ids")
    by_phrase.filter.image_ids.extend(hit.record.image_id for hit in hits)
    by_phrase.page_size = len(hits)
    answer = await services.reader.call(services.reader.stub.Search, by_phrase)
    by_image = {hit.record.image_id: hit for hit in hits}
    for phrase, result in enumerate(answer.results):
        for other in result.hits:
            hit = by_image[other.record.image_id]
            other.query_index = phrase
            judge(other, cut_off)
            if phrase != hit.query_index and is_match(other, request):
                hide_key(other.image)
                hit.others.append(other)
    if not request.all_phrases:
        return list(hits)
    return [hit for hit in hits if len(hit.others) + 1 == len(request.query.texts) and is_match(hit, request)]
