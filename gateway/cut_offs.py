"""Which hits are confident, and which of a search's hits are answered: the one place of the rule.

A model's cut-off is measured by `regionsearch evaluate --calibrate` and stored in its manifest; the embedder
serves it. It is about words and regions: a phrase fits a region or does not, while likeness to an example,
and what a whole image is about, are matters of degree.
"""

from __future__ import annotations

from typing import TypeAlias

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
