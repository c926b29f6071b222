"""Turns queries into vectors: words, an image, a region, a click, or all of them combined."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gateway.catalog import Catalog, PendingCollection
from gateway.prompt_resolver import PromptResolver, merged_mask, select_stored
from gateway.service_clients import Services, model_mismatch, remap_error_field, same_model
from gateway.settings import GatewaySettings
from gateway.vectors import Vectors, features_of, joined, joined_texts
from regionsearch.errors import invalid, not_found, too_large
from regionsearch.rpc.calls import gather_or_cancel
from regionsearch.tensors import tensor_from_proto
from regionsearch.texts import visible_text
from regionsearch.v1 import embed_pb2, region_search_pb2, search_pb2, segment_pb2, types_pb2

SearchRequest: TypeAlias = region_search_pb2.RegionSearchServiceSearchRequest
Negated: TypeAlias = SearchRequest | region_search_pb2.SearchWithinRequest
"""A request that says what is not meant."""


@dataclass(frozen=True)
class QueryVectors:
    """A query, ready for the searcher.

    Attributes:
        positives: Shape (phrases or 1, dimension), unit length.
        negatives: Shape (negatives, dimension), unit length.
        truncated: For each phrase, whether the model read only its beginning.
        cut_off: From which score on a region is confident; None where no score is judged.
    """

    positives: Vectors
    negatives: Vectors
    truncated: tuple[bool, ...]
    cut_off: float | None


class QueryEncoder:
    """Embeds queries for a collection."""

    def __init__(
        self, services: Services, catalog: Catalog, resolver: PromptResolver, settings: GatewaySettings
    ) -> None:
        self._services = services
        self._catalog = catalog
        self._resolver = resolver
        self._max_texts = settings.limits.max_texts

    async def encode(self, pending: PendingCollection, request: SearchRequest) -> QueryVectors:
        """The vectors of a query: each phrase averaged with the examples, or the examples alone.

        Raises:
            RegionSearchError: INVALID_ARGUMENT that names the field, NOT_FOUND, MODEL_MISMATCH.
        """
        query = request.query
        _check_query(query)
        for name in ("region_ids", "image_ids"):
            if (count := len(getattr(query, name))) > self._max_texts:
                raise too_large(
                    f"query.{name}",
                    f"query.{name}: {count} is over the limit of {self._max_texts} (max_texts)",
                )
        self.check_phrases(query.texts, "query.texts", request)
        phrases, *examples = await gather_or_cancel(
            self.phrases(pending, query.texts, request), *self._examples(pending, query)
        )
        found: QueryVectors = phrases
        if examples:
            shown = np.vstack(examples).sum(axis=0)
            bases = found.positives if query.texts else np.zeros((1, len(shown)), np.float32)
            found = replace(found, positives=unit(bases + shown), cut_off=None)
        return found

    def check_phrases(self, texts: Sequence[str], field: str, request: Negated) -> None:
        """Refuses blank phrases and negatives, and too many of them.

        Args:
            texts: What is looked for.
            field: Where they stand in the request.
            request: Says what is not meant.
        """
        for name, given in ((field, len(texts)), ("negatives", len(request.negatives))):
            if given > self._max_texts:
                raise too_large(
                    name, f"{name} has {given} entries, over the limit of {self._max_texts} (max_texts)"
                )
        for i, text in enumerate(texts):
            _check_phrase(f"{field}[{i}]", text)
        for i, negative in enumerate(request.negatives):
            kind = negative.WhichOneof("kind")
            if kind is None:
                raise invalid(f"negatives[{i}]", "a negative is a text, an image, a region_id or an image_id")
            if kind == "text":
                _check_phrase(f"negatives[{i}]", negative.text)

    async def phrases(
        self, pending: PendingCollection, texts: Sequence[str], request: Negated
    ) -> QueryVectors:
        """The vectors of phrases, and of all that the request says is not meant; they have been checked."""
        unwanted = [one.text for one in request.negatives if one.HasField("text")]
        examples = [
            self._negative(pending, one, f"negatives[{i}]")
            for i, one in enumerate(request.negatives)
            if not one.HasField("text")
        ]
        cut_off, (vectors, truncated), *shown = await gather_or_cancel(
            self._catalog.cut_off(pending), self._texts(pending, [*texts, *unwanted]), *examples
        )
        positives, negatives = vectors[: len(texts)], [*vectors[len(texts) :], *shown]
        return QueryVectors(
            positives,
            np.vstack(negatives) if negatives else np.empty_like(vectors[:0]),
            truncated[: len(texts)],
            cut_off if texts else None,
        )

    async def regions(
        self,
        pending: PendingCollection,
        image: types_pb2.Image,
        cuts: Sequence[embed_pb2.RegionCut],
    ) -> Vectors:
        """Vectors of regions of an image under the collection's crop policy, shape (cuts, dimension).

        The regions have been found already: where the embedder is full this waits, or the work were lost.
        """
        collection = await pending
        embedder = await self._catalog.embedder_of(pending)
        request = embed_pb2.EmbedRegionsRequest(
            image=image, regions=cuts, crop_policy=collection.model.crop_policy
        )
        answer, features = await gather_or_cancel(
            embedder.call(embedder.stub.EmbedRegions, request, retry_overload=True),
            features_of(self._services, collection, image, [cut.mask for cut in cuts]),
        )
        return joined(_vectors(answer.vectors, answer.model, collection), features[1:], collection)

    def _examples(
        self, pending: PendingCollection, query: region_search_pb2.Query
    ) -> list[Coroutine[Any, Any, Vectors]]:
        """Vectors (any, dimension) or (dimension,) of everything in the query that is not words."""
        prompt = segment_pb2.Prompt(points=query.points)
        if query.HasField("box"):
            prompt.box.CopyFrom(query.box)
        pointed = prompt.ByteSize() > 0
        wanted: list[Coroutine[Any, Any, Vectors]] = []
        if query.HasField("image"):
            image = query.image
            wanted.append(
                self._pointed_at(pending, image, prompt)
                if pointed
                else self._whole(pending, image, "query.image")
            )
        stored = {query.region_id: "query.region_id"} if query.region_id else {}
        stored |= {one: f"query.region_ids[{i}]" for i, one in enumerate(query.region_ids)}
        stored |= {f"{one}-image": f"query.image_ids[{i}]" for i, one in enumerate(query.image_ids)}
        if query.image_id and pointed:
            wanted.append(self._pointed_at_stored(pending, query.image_id, prompt))
        elif query.image_id:
            stored[f"{query.image_id}-image"] = "query.image_id"
        if stored:
            wanted.append(self._stored(pending, stored))
        return wanted

    async def _texts(
        self, pending: PendingCollection, texts: Sequence[str]
    ) -> tuple[Vectors, tuple[bool, ...]]:
        """Vectors (texts, dimension), and for each text whether its end was cut off."""
        if not texts:
            return np.empty((0, (await pending).model.dimension), np.float32), ()
        embedder = await self._catalog.embedder_of(pending)
        request = embed_pb2.EmbedTextsRequest(texts=texts)
        answer = await embedder.call(embedder.stub.EmbedTexts, request)
        answer.model.crop_policy = types_pb2.CROP_POLICY_UNSPECIFIED
        collection = await pending
        vectors = joined_texts(_vectors(answer.vectors, answer.model, collection), collection)
        return vectors, tuple(answer.truncated)

    def _negative(
        self, pending: PendingCollection, negative: region_search_pb2.Negative, field: str
    ) -> Coroutine[Any, Any, Vectors]:
        """The vector (dimension,) of an example of what is not meant."""
        kind = negative.WhichOneof("kind")
        if kind == "image":
            return self._whole(pending, negative.image, f"{field}.image")
        record = negative.region_id if kind == "region_id" else f"{negative.image_id}-image"
        return self._stored(pending, {record: f"{field}.{kind}"})

    async def _whole(self, pending: PendingCollection, image: types_pb2.Image, field: str) -> Vectors:
        embedder = await self._catalog.embedder_of(pending)
        request = embed_pb2.EmbedImagesRequest(images=[image])
        with remap_error_field("images[0]", field):
            answer = await embedder.call(embedder.stub.EmbedImages, request)
        answer.model.crop_policy = types_pb2.CROP_POLICY_UNSPECIFIED
        collection = await pending
        embeddings = _vectors(answer.vectors, answer.model, collection)
        with remap_error_field("image", field):
            features = await features_of(self._services, collection, image, [])
        return _first(joined(embeddings, features, collection))

    async def _pointed_at(
        self, pending: PendingCollection, image: types_pb2.Image, prompt: segment_pb2.Prompt
    ) -> Vectors:
        with remap_error_field("prompts.prompts[0]", "query"), remap_error_field("image", "query.image"):
            region = await self._resolver.object_at(image, prompt)
        cut = embed_pb2.RegionCut(box=region.box, mask=region.mask)
        return _first(await self.regions(pending, image, [cut]))

    async def _stored(self, pending: PendingCollection, record_ids: Mapping[str, str]) -> Vectors:
        """Vectors of stored records, shape (records, dimension), in any order.

        Args:
            pending: Where they are.
            record_ids: Their ids, each with the field that names it.
        """
        where = (await pending).name
        found = await self._catalog.images.records(where, record_ids=list(record_ids), vectors=True)
        known = {record.record_id for record in found.records}
        for record_id, field in record_ids.items():
            if record_id not in known:
                name = record_id.removesuffix("-image")
                raise not_found(field, f"{field}: collection {where!r} has no {name!r}")
        return tensor_from_proto(found.vectors, "vectors", ndim=2)

    async def _pointed_at_stored(
        self, pending: PendingCollection, image_id: str, prompt: segment_pb2.Prompt
    ) -> Vectors:
        """Segment-then-select; the segmenter is asked only where no stored region fits."""
        where = (await pending).name
        with remap_error_field("image_id", "query.image_id"):
            found = await self._catalog.images.regions(where, image_id, masks=True, vectors=True)
        (stored,) = found.images
        size = (stored.height, stored.width)
        chosen = await asyncio.to_thread(select_stored, found.records, prompt, size, "query.")
        if len(chosen) == 1:
            return np.array(tensor_from_proto(found.vectors, "vectors", ndim=2)[chosen[0]])
        image = await self._resolver.stored_image(where, image_id)
        if not chosen:
            return await self._pointed_at(pending, image, prompt)
        mask = await asyncio.to_thread(merged_mask, [found.records[index] for index in chosen])
        return _first(await self.regions(pending, image, [embed_pb2.RegionCut(mask=mask)]))


def _check_phrase(field: str, text: str) -> None:
    if not visible_text(text).strip():
        raise invalid(field, f"{field} is empty: a phrase needs at least one visible character")


def _check_query(query: region_search_pb2.Query) -> None:
    image = query.HasField("image")
    pointed = bool(query.points) or query.HasField("box")
    stored = query.region_id or query.image_id or query.region_ids or query.image_ids
    if not query.texts and not image and not stored:
        raise invalid("query", "the query is empty; give text, an image, a region_id or an image_id")
    if pointed and image == bool(query.image_id):
        raise invalid(
            "query.points" if query.points else "query.box",
            "points and box belong to one image; give either image or image_id with them",
        )
    for index, point in enumerate(query.points):
        if not (math.isfinite(point.x) and math.isfinite(point.y)):
            raise invalid(f"query.points[{index}]", "a point needs finite coordinates")


def check_finite(request: Negated) -> None:
    """Refuses thresholds that are not numbers, or out of range.

    Raises:
        RegionSearchError: INVALID_ARGUMENT that names the field.
    """
    for name in ("min_score", "relative_cutoff", "min_relevancy"):
        if request.HasField(name) and not math.isfinite(getattr(request, name)):
            raise invalid(name, f"{name} must be a finite number")
    if request.HasField("relative_cutoff") and not 0.0 <= request.relative_cutoff <= 1.0:
        raise invalid("relative_cutoff", "relative_cutoff is between 0 and 1")


def unit(vectors: NDArray[np.floating]) -> Vectors:
    """Rows scaled to length one; a row of zeros stays."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), np.float32)


def _vectors(
    tensor: types_pb2.Tensor, model: types_pb2.ModelInfo, collection: search_pb2.Collection
) -> Vectors:
    if not same_model(model, collection.model):
        raise model_mismatch(collection, model)
    return tensor_from_proto(tensor, "vectors", ndim=2)


def _first(vectors: Vectors) -> Vectors:
    row: Vectors = vectors[0]
    return row
