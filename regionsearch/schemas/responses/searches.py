"""What searches find, in a collection and inside one image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, Literal, Protocol, overload

from google.protobuf.message import Message
from pydantic import Field

from regionsearch.schemas.responses.regions import Region, region_fields
from regionsearch.schemas.responses.values import Box, Mask, Model, Response
from regionsearch.v1 import region_search_pb2, search_pb2, types_pb2


class HitImage(Response):
    """The image of a hit."""

    width: int = Field(description="Pixels, upright.")
    height: int = Field(description="Pixels, upright.")
    name: str = Field(description="Display name, perhaps with folders.")
    tags: tuple[str, ...] = Field(description="Of the image.")


class Hit(Response):
    """Something that was found."""

    rank: int = Field(description="From 1, through all pages.")
    score: float = Field(description="Cosine of query and record, -1 to 1.")
    confident: bool | None = Field(
        None,
        description="Whether the score of a region reaches the cut-off; null for a model without one.",
    )
    relevancy: float | None = Field(
        None, description="With negatives: probability that it is meant and none of them, 0 to 1."
    )
    image_id: str = Field(description="Of its image.")
    region_id: str | None = Field(description="Null for a whole image.")
    level: Literal["image", "region"] = Field(description="Whether a region or a whole image was found.")
    box: Box = Field(description="Around it; all of the image for a whole one.")
    mask: Mask | None = Field(None, description="When asked for with `include`.")
    area: int = Field(description="Pixels of the mask.")
    image: HitImage = Field(description="What is known of its image.")
    label: str | None = Field(description="The phrase that it fits best.")
    text_index: int | None = Field(None, description="The place of that phrase, from 0.")
    best_region: Hit | None = Field(None, description="When the whole image is the hit: its best region.")
    others: tuple[Hit, ...] = Field(
        (), description="Grouped by image: the best regions of the other phrases, when asked for."
    )

    folded_count: int = Field(
        0, description="With fold_similarity: how many near duplicates were folded into this hit."
    )

    @classmethod
    def from_proto(cls, hit: search_pb2.Hit, phrases: Sequence[str]) -> Hit:
        """Converts the contract's message; the phrases are those of the query."""
        record, image = hit.record, hit.image
        region = record.level == search_pb2.LEVEL_REGION
        return cls(
            rank=hit.rank,
            score=hit.score,
            confident=hit.confident if hit.HasField("confident") else None,
            relevancy=hit.relevancy if hit.HasField("relevancy") else None,
            image_id=record.image_id,
            region_id=record.record_id if region else None,
            level="region" if region else "image",
            box=Box.from_proto(record.box),
            mask=Mask.from_proto(record.mask) if record.HasField("mask") else None,
            area=record.area,
            image=HitImage(width=image.width, height=image.height, name=image.name, tags=tuple(image.tags)),
            label=phrases[hit.query_index] if phrases else None,
            text_index=hit.query_index if phrases else None,
            best_region=cls.from_proto(hit.best_region, phrases) if hit.HasField("best_region") else None,
            others=tuple(cls.from_proto(other, phrases) for other in hit.others),
            folded_count=hit.folded_count,
        )

    def __repr__(self) -> str:
        what = f"{self.label!r} " if self.label is not None else ""
        where = self.region_id or self.image_id
        return f"<Hit {self.rank}: {what}{self.score:.3f} in {self.image.name!r}, {where}>"


class SearchPage(Protocol):
    """A page of hits as messages: the contract's own, or the gateway's, which spares a copy of every hit."""

    @property
    def hits(self) -> Sequence[search_pb2.Hit]:
        """Best first."""

    @property
    def next_page_token(self) -> str:
        """Empty on the last page."""

    @property
    def model(self) -> types_pb2.ModelInfo:
        """Of the collection."""

    @property
    def seq(self) -> int:
        """Of the last write that was searched."""

    @property
    def truncated(self) -> Sequence[bool]:
        """For each phrase, whether its end was cut off."""

    @property
    def cut_off(self) -> float | None:
        """From which score on a region is confident; None where no hit is judged."""


class SearchResult(Response):
    """A page of hits, best first; empty when there is nothing."""

    hits: tuple[Hit, ...] = Field(description="Best first.")
    next_page_token: str = Field(description="For the next page; empty on the last one.")
    model: Model = Field(description="Of the collection.")
    seq: int = Field(description="Of the last write that the search saw.")
    truncated: tuple[bool, ...] = Field(
        description="On the first page, for each phrase: it was longer than the model reads."
    )
    cut_off: float | None = Field(
        None,
        description="From which score on a region is confident. Null if the model is not calibrated, and if "
        "the query is more than words: likeness to an example is a matter of degree. No hit is judged then.",
    )

    @classmethod
    def from_proto(cls, answer: SearchPage, phrases: Sequence[str]) -> SearchResult:
        """Converts the contract's message; the phrases are those of the query."""
        return cls(
            hits=tuple(Hit.from_proto(hit, phrases) for hit in answer.hits),
            next_page_token=answer.next_page_token,
            model=Model.from_proto(answer.model),
            seq=answer.seq,
            truncated=tuple(answer.truncated),
            cut_off=_cut_off(answer),
        )

    def to_dataframe(self) -> Any:
        """See `regionsearch.exports.to_dataframe`."""
        from regionsearch.exports import to_dataframe

        return to_dataframe(self.hits)

    def to_coco(self) -> dict[str, Any]:
        """See `regionsearch.exports.to_coco`."""
        from regionsearch.exports import to_coco

        return to_coco(self.hits)

    def to_supervision(self, image_id: str) -> Any:
        """The hits in one image; see `regionsearch.exports.to_supervision`."""
        from regionsearch.exports import to_supervision

        return to_supervision([hit for hit in self.hits if hit.image_id == image_id])

    def __repr__(self) -> str:
        best = f", best {self.hits[0].score:.3f}" if self.hits else ""
        return f"<{len(self.hits)} hits{best}{', more' if self.next_page_token else ''}>"

    def _repr_html_(self) -> str:
        """A table, for notebooks."""
        head = ("", "score", "", "label", "image", "region")
        rows = [
            (str(hit.rank), f"{hit.score:.3f}", "" if hit.confident is not False else "weak",
             hit.label or "", hit.image.name, hit.region_id or "")
            for hit in self.hits
        ]  # fmt: skip
        lines = "".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in (head, *rows)
        )
        return f"<table>{lines}</table>"

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:  # type: ignore[override]
        return iter(self.hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[index]


class ScoredRegion(Region):
    """A region with its score."""

    score: float = Field(description="Cosine of phrase and region, -1 to 1.")
    relevancy: float | None = Field(
        None, description="With negatives: probability that it is meant and none of them, 0 to 1."
    )
    label: str = Field(description="The phrase that it fits best.")
    text_index: int = Field(description="The place of that phrase, from 0.")
    is_hit: bool = Field(description="Whether it passed the thresholds.")
    confident: bool | None = Field(
        None,
        description="Whether the score of a region reaches the cut-off; null for a model without one.",
    )

    @classmethod
    def from_scored(cls, scored: region_search_pb2.ScoredRegion, phrases: Sequence[str]) -> ScoredRegion:
        """Converts the contract's message; the phrases are those of the query."""
        return cls(
            **region_fields(scored.region) | {"region_id": scored.region_id or None},
            score=scored.score,
            relevancy=scored.relevancy if scored.HasField("relevancy") else None,
            label=phrases[scored.text_index],
            text_index=scored.text_index,
            is_hit=scored.is_hit,
            confident=scored.confident if scored.HasField("confident") else None,
        )


class WithinResult(Response):
    """Every region of an image, or what the segmenter found for the phrases, best first."""

    width: int = Field(description="Of the image, in pixels.")
    height: int = Field(description="Of the image, in pixels.")
    regions: tuple[ScoredRegion, ...] = Field(description="All regions of the image, best first.")
    union_mask: Mask = Field(description="Of the hits.")
    model: Model = Field(description="The model that found them.")
    truncated: tuple[bool, ...] = Field(
        (), description="For each phrase: it was longer than the model reads."
    )
    cut_off: float | None = Field(
        None, description="From which score on a region is confident; null if not calibrated."
    )
    found_by: Literal["embedder", "segmenter"] = Field(
        "embedder", description="Scores of the embedder are cosines, those of the segmenter probabilities."
    )

    @classmethod
    def from_proto(
        cls, answer: region_search_pb2.SearchWithinResponse, phrases: Sequence[str]
    ) -> WithinResult:
        """Converts the contract's message; the phrases are those of the query."""
        by_segmenter = answer.found_by == region_search_pb2.FIND_BY_SEGMENTER
        return cls(
            found_by="segmenter" if by_segmenter else "embedder",
            width=answer.image_width,
            height=answer.image_height,
            regions=tuple(ScoredRegion.from_scored(one, phrases) for one in answer.regions),
            union_mask=Mask.from_proto(answer.union_mask),
            model=Model.from_proto(answer.model),
            truncated=tuple(answer.truncated),
            cut_off=_cut_off(answer),
        )

    @property
    def hits(self) -> tuple[ScoredRegion, ...]:
        """The regions that passed the thresholds."""
        return tuple(region for region in self.regions if region.is_hit)


def _cut_off(answer: SearchPage | region_search_pb2.SearchWithinResponse) -> float | None:
    if isinstance(answer, Message):
        return answer.cut_off if answer.HasField("cut_off") else None
    return answer.cut_off
