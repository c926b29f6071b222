"""Changes of the names, tags and attributes of stored images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.metadata import MetadataLimits
from services.searcher.types import StoredImage


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
