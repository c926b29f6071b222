"""What an engine is asked and answers: filters, queries, hits, pages, deletions, changes of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.texts import MetadataLimits
from services.searcher.conditions import AnyOf
from services.searcher.types import Level, Record, StoredImage, Vectors


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions that must all hold; empty ones are ignored.

    Attributes:
        image_ids: The record's image is one of these.
        exclude_image_ids: The record's image is none of these.
        record_ids: The record is one of these.
        exclude_record_ids: The record is none of these.
        tags: The image has at least one of these.
        exclude_tags: The image has none of these.
        min_area: Pixels, inclusive.
        max_area: Pixels, inclusive.
        min_predicted_iou: Inclusive.
        min_stability_score: Inclusive.
        attributes: The record, or else its image, has exactly these values.
        created_after_ms: Time of the image's first write, inclusive.
        created_before_ms: Time of the image's first write, exclusive.
        conditions: Further ones, of which each must hold.
    """

    image_ids: tuple[str, ...] = ()
    exclude_image_ids: tuple[str, ...] = ()
    record_ids: tuple[str, ...] = ()
    exclude_record_ids: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    exclude_tags: tuple[str, ...] = ()
    min_area: int | None = None
    max_area: int | None = None
    min_predicted_iou: float | None = None
    min_stability_score: float | None = None
    attributes: tuple[tuple[str, str], ...] = ()
    created_after_ms: int | None = None
    created_before_ms: int | None = None
    conditions: tuple[AnyOf, ...] = ()


NO_FILTER = Filter()


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the one total order of hits: after this hit the next page begins."""

    score: float
    level: int
    image_id: str
    record_id: str

    @property
    def sort_key(self) -> tuple[float, int, str, str]:
        """Ascending in the order of hits: best score first, image before region, then the ids."""
        return (-self.score, self.level, self.image_id, self.record_id)


BEGINNING = Position(2.0, 0, "", "")
"""Before every hit."""


@dataclass(frozen=True, slots=True)
class Query:
    """One ranked list to be made.

    Attributes:
        vectors: Shape (queries, dimension); a record scores with its best one.
        negatives: Shape (negatives, dimension), perhaps no rows.
        level: Only records of this level; None is both.
        filter: Conditions on records.
        min_score: Lowest cosine kept.
        min_relevancy: Lowest relevancy kept, where there are negatives.
        relative_cutoff: Keeps what scores at least this part of the best score.
        group_by_image: One hit an image.
        whole_image_margin: Grouped over both levels, a whole image goes before its own region that is
            better by less than this.
        limit: Hits wanted.
        seq: The state of the collection to search; None is the newest.
        generation: The generation of the collection to search (see `UpsertResult`); None is the present one.
        after: Only hits behind this place.
        skipped: Number of hits up to `after`, the rank of the last one.
        shown: The engine's own numbers of hits that were shown although they may come behind `after`.
        effort: How far an approximate index looks, as a multiple of what its target needs; infinity looks at
            all.
        include_masks: Whether the records of the hits carry their masks.
        fold_similarity: Hits whose cosine with a better one is at least this are folded into that one; None:
            none are.
        diversity: Weight of the cosine with earlier hits against the score, 0 to 1.
        codes_only: Scores are those of the binary codes instead of cosines.
    """

    vectors: Vectors
    negatives: Vectors
    level: Level | None = None
    filter: Filter = NO_FILTER
    min_score: float | None = None
    min_relevancy: float = 0.5
    relative_cutoff: float | None = None
    group_by_image: bool = False
    whole_image_margin: float = 0.02
    limit: int = 20
    seq: int | None = None
    generation: str | None = None
    after: Position | None = None
    skipped: int = 0
    shown: tuple[int, ...] = ()
    effort: float = 1.0
    include_masks: bool = False
    fold_similarity: float | None = None
    diversity: float = 0.0
    codes_only: bool = False


@dataclass(frozen=True, slots=True)
class Hit:
    """One found record with its image, and `best_region` where the whole image stands for it.

    `folded` is the number of near duplicates that were folded into it.
    """

    rank: int
    score: float
    relevancy: float | None
    query_index: int
    record: Record
    image: StoredImage
    best_region: Hit | None = None
    folded: int = 0

    @property
    def position(self) -> Position:
        """Where the hit stands in the total order."""
        return Position(self.score, int(self.record.level), self.record.image_id, self.record.record_id)


@dataclass(frozen=True, slots=True)
class Page:
    """Hits in order, state and generation of the collection that they are from, and whether more follow.

    Attributes:
        hits: The hits.
        seq: The state.
        more: Whether more follow.
        generation: See `UpsertResult`.
        after: Where the next page continues, if not after the last hit.
        shown: What the next page's query has to name as shown.
    """

    hits: tuple[Hit, ...]
    seq: int
    more: bool
    generation: str = ""
    after: Position | None = None
    shown: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Deletion:
    """Selects what to delete: the union of all selectors. Images that a filter empties are deleted too.

    Nothing goes unless the image `as_read` still has the time of creation, name, tags and attributes that it
    has there.
    """

    image_ids: tuple[str, ...] = ()
    record_ids: tuple[str, ...] = ()
    filter: Filter | None = None
    as_read: StoredImage | None = None


@dataclass(frozen=True, slots=True)
class ImageUpdate:
    """A change of one image. What is None or empty stays as it is.

    Attributes:
        image_id: The image.
        name: Its new name.
        tags: Replace all of its tags.
        remove_tags: Taken away, after `tags`.
        add_tags: Added at the end, after `remove_tags`.
        remove_attributes: Taken away.
        set_attributes: Set, after `remove_attributes`.
        as_read: The image must still have this time of creation, name, tags and attributes.
    """

    image_id: str
    name: str | None = None
    tags: tuple[str, ...] | None = None
    remove_tags: tuple[str, ...] = ()
    add_tags: tuple[str, ...] = ()
    remove_attributes: tuple[str, ...] = ()
    set_attributes: Mapping[str, str] = field(default_factory=dict)
    as_read: StoredImage | None = None

    def apply(self, image: StoredImage, limits: MetadataLimits) -> StoredImage:
        """The image after the change; equal to the given one when nothing changes.

        Raises:
            RegionSearchError: ABORTED when the image is not as it was read; TOO_LARGE when more would be said
                about it than the limits allow.
        """
        if self.as_read is not None:
            check_unchanged(self.as_read, image)
        tags = image.tags if self.tags is None else self.tags
        tags = tuple(dict.fromkeys([*(tag for tag in tags if tag not in self.remove_tags), *self.add_tags]))
        gone = set(self.remove_attributes)
        attributes = {name: value for name, value in image.attributes.items() if name not in gone}
        attributes.update(self.set_attributes)
        name = image.name if self.name is None else self.name
        changed = replace(image, name=name, tags=tags, attributes=attributes)
        grown = set(tags) - set(image.tags) or attributes.items() - image.attributes.items()
        if grown:  # what an older version let in can be made less, step by step
            limits.check(tags, attributes)
        return image if changed == image else changed


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """The result of an update. `images` are those that exist, after it, in the order of the request."""

    seq: int
    images: tuple[StoredImage, ...]


def check_unchanged(as_read: StoredImage, image: StoredImage | None) -> None:
    """Refuses a change of an image that is not as it was read; None is one that does not exist any more.

    Raises:
        RegionSearchError: ABORTED.
    """
    if image is None or _comparable(as_read) != _comparable(image):
        raise RegionSearchError(
            Kind.ABORTED,
            f"conflict: image {as_read.image_id!r} has changed since it was read; read it again",
            field="as_read",
        )


def _comparable(image: StoredImage) -> tuple[object, ...]:
    return image.created_ms, image.name, frozenset(image.tags), dict(image.attributes)
