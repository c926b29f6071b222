"""A running gateway as a system under test: everything goes through its HTTP API."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np

from evaluation.dataset import Sample
from evaluation.rle import FloatArray, Rle
from evaluation.system import Progress, Proposals, Regions, Stopwatch, TextScores
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.proxies import environment_proxy, http_options, through

CALLS_AT_ONCE = 8
PAGE = 1000  # hits of one answer
TIMEOUT_S = 300.0
NOT_RETRIEVED = -np.inf


class Gateway:
    """Ingests a data set into a collection of its own, asks it, and deletes it in the end.

    Use it as a context manager.

    Args:
        url: Base URL.
        api_key: Where the gateway wants one; it needs the scope of collections.
        policy: Crop policy of the collection.
        keep: Whether the collection stays when all is done.

    Raises:
        RegionSearchError: The gateway cannot be reached, or refuses.
    """

    def __init__(
        self, url: str, api_key: str | None = None, policy: str = "blur", keep: bool = False
    ) -> None:
        headers = {"X-API-Key": api_key} if api_key else {}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, **http_options(url))
        self._url = url
        self._through = through(environment_proxy(url))
        self._collection = f"evaluation-{uuid.uuid4().hex[:12]}"
        self._policy = policy
        self._keep = keep
        self._ids: dict[Path, tuple[str, list[str]]] = {}  # file -> image id and region ids
        self._watch = Stopwatch()

    def __enter__(self) -> Self:
        self._call("POST", "/v1/collections", json={"name": self._collection, "crop_policy": self._policy})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._keep or error is not None:
                self._call("DELETE", f"/v1/collections/{self._collection}")
        except RegionSearchError:
            if error is None:  # else what went wrong first is what is told
                raise
        finally:
            self._client.close()

    def pages(self) -> dict[Path, str]:
        """Where each image is shown on the gateway's web page, with its things."""
        root = f"{self._url.rstrip('/')}/?in={self._collection}&view="
        return {path: root + image_id for path, (image_id, _) in self._ids.items()}

    def describe(self) -> dict[str, Any]:
        """See `evaluation.system.System`."""
        models = self._call("GET", "/v1/models")
        path = f"/v1/collections/{self._collection}/search"
        searched = self._call("POST", path, json={"query": {"text": "anything"}, "page_size": 1})
        return {
            "url": self._url,
            "segmenter": models["segmenter"],
            "embedder": models["embedder"],
            "crop_policy": self._policy,
            "cut_off": searched["cut_off"],
        }

    def proposals(self, sample: Sample) -> Proposals:
        """See `evaluation.system.System`. What is kept is what an ingest keeps."""
        with self._watch.measure("segment everything, per image"):
            found = self._call("POST", "/v1/segment", json={"image": _base64(sample), "everything": True})
        path = f"/v1/collections/{self._collection}/images"
        with self._watch.measure("ingest, per image"):
            answer = self._call("POST", path, files={"files": (sample.path.name, sample.read())})
        (result,) = answer["results"]
        if result["outcome"] == "failed":
            raise RegionSearchError(Kind.INTERNAL, f"{sample.path.name} was not ingested: {result['error']}")
        image_id = result["image_id"]
        kept = self._call("GET", f"{path}/{image_id}/regions", params={"include": "mask"})["regions"]
        self._ids[sample.path] = image_id, [region["region_id"] for region in kept]
        ranked = sorted(found["regions"], key=_quality, reverse=True)
        return Proposals(_regions(ranked), _regions(kept))

    def click(self, sample: Sample, points: Sequence[tuple[int, int]]) -> Sequence[Rle]:
        """See `evaluation.system.System`."""
        prompts = [{"points": [{"x": x, "y": y, "label": 1}]} for x, y in points]
        body = {"image": _base64(sample), "prompts": prompts, "multimask": True}
        results = self._call("POST", "/v1/segment", json=body)["results"]
        return [_mask(result["candidates"][0]) for result in results]

    def index(
        self, samples: Sequence[Sample], proposals: Sequence[Proposals], progress: Progress
    ) -> CollectionIndex:
        """See `evaluation.system.System`."""
        known = [self._ids[sample.path] for sample in samples]
        return CollectionIndex(
            regions=[proposed.kept for proposed in proposals],
            image_columns={image: column for column, (image, _) in enumerate(known)},
            region_ids=[region for _, regions in known for region in regions],
            search=self._search,
            progress=progress,
        )

    def timings(self) -> dict[str, dict[str, float]]:
        """See `evaluation.system.System`."""
        return self._watch.summary()

    def _search(self, query: dict[str, Any], level: str) -> Iterator[dict[str, Any]]:
        """All hits, page by page."""
        body = {"query": query, "level": level, "page_size": PAGE, "include": ["weak"]}
        path = f"/v1/collections/{self._collection}/search"
        while True:
            with self._watch.measure("search, a page of 1000"):
                answer = self._call("POST", path, json=body)
            yield from answer["hits"]
            if not answer["next_page_token"]:
                return
            body["page_token"] = answer["next_page_token"]

    def _call(self, method: str, path: str, **content: Any) -> Any:
        try:
            response = self._client.request(method, path, **content)
        except httpx.TransportError as error:
            raise RegionSearchError(
                Kind.UNAVAILABLE,
                f"{self._url} does not answer{self._through} ({error}); start it with `regionsearch up`",
            ) from error
        if response.is_error:
            raise RegionSearchError(Kind.INTERNAL, f"{method} {path} was refused: {response.text[:500]}")
        return response.json() if response.content else None


@dataclass
class CollectionIndex:
    """The collection, asked until it has no more hits. See `evaluation.system.Index`.

    Attributes:
        regions: What was indexed, one entry for each sample.
        image_columns: Image id -> sample.
        region_ids: Region ids of all samples, in the order of the columns.
        search: From a query and a level to all hits.
        progress: Told how far it is.
    """

    regions: Sequence[Regions]
    image_columns: dict[str, int]
    region_ids: Sequence[str]
    search: Any
    progress: Progress
    region_columns: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.region_columns = {region: column for column, region in enumerate(self.region_ids)}

    def text_scores(self, texts: Sequence[str]) -> TextScores:
        """See `evaluation.system.Index`."""
        rows = self._ask([({"text": text}, "both") for text in texts])
        columns = len(self.region_ids)
        return TextScores(rows[:, :columns], rows[:, columns:])

    def region_scores(self, rows: Sequence[int]) -> FloatArray:
        """See `evaluation.system.Index`."""
        queries = [({"region_id": self.region_ids[row]}, "region") for row in rows]
        return self._ask(queries)[:, : len(self.region_ids)]

    def _ask(self, queries: Sequence[tuple[dict[str, Any], str]]) -> FloatArray:
        """Scores of every query, (queries, regions + images)."""
        regions = len(self.region_ids)
        scores = np.full((len(queries), regions + len(self.image_columns)), NOT_RETRIEVED)

        def ask(row: int) -> None:
            for hit in self.search(*queries[row]):
                if hit["level"] == "region":
                    scores[row, self.region_columns[hit["region_id"]]] = hit["score"]
                else:
                    scores[row, regions + self.image_columns[hit["image_id"]]] = hit["score"]

        with ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
            for done, _ in enumerate(pool.map(ask, range(len(queries)))):
                self.progress("searching", done, len(queries))
        return scores


def _base64(sample: Sample) -> str:
    return base64.b64encode(sample.read()).decode()


def _mask(region: dict[str, Any]) -> Rle:
    return {"size": list(region["mask"]["size"]), "counts": region["mask"]["counts"].encode()}


def _quality(region: dict[str, Any]) -> float:
    return float(region["predicted_iou"] * region["stability_score"])


def _regions(found: Sequence[dict[str, Any]]) -> Regions:
    return Regions([_mask(region) for region in found], np.array([_quality(region) for region in found]))
