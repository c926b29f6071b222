"""How much may be said about one image in tags and attributes; gateway and searcher check it alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from regionsearch.errors import invalid, too_large


@dataclass(frozen=True, slots=True)
class MetadataLimits:
    """Limits of the tags and attributes of one image, or of the attributes of one record.

    Every image of a list, and of a page of hits, carries its tags: what one writer may store decides how much
    all readers are sent.

    Attributes:
        tags: Most tags.
        attributes: Most attributes.
        text_bytes: Longest tag, attribute name or attribute value, in UTF-8 bytes.
        total_bytes: UTF-8 bytes of all tags, attribute names and attribute values together.
    """

    tags: int
    attributes: int
    text_bytes: int
    total_bytes: int

    def check(self, tags: Iterable[str], attributes: Mapping[str, str], field: str = "") -> None:
        """Refuses what is over a limit, or cannot be stored.

        Args:
            tags: The image's tags, each once.
            attributes: Its attributes.
            field: Prefix of the field in the request, such as ``images[2].``; "" for none.

        Raises:
            RegionSearchError: TOO_LARGE, or INVALID_ARGUMENT; both name the field.
        """
        tags = list(tags)
        texts = [*attributes.keys(), *attributes.values()]
        for name, count, limit, setting in (
            ("tags", len(tags), self.tags, "max_tags"),
            ("attributes", len(attributes), self.attributes, "max_attributes"),
        ):
            if count > limit:
                raise too_large(
                    field + name, f"{field}{name}: {count} is over the limit of {limit} (limits.{setting})"
                )
        total = 0
        for name, values in (("tags", tags), ("attributes", texts)):
            for text in values:
                self._check_text(field + name, text)
                total += len(text.encode())
        if total > self.total_bytes:
            name = "tags" if sum(len(tag.encode()) for tag in tags) * 2 >= total else "attributes"
            raise too_large(
                field + name,
                f"{field}{name}: tags and attributes have {total} bytes together, over the limit of "
                f"{self.total_bytes} for one image (limits.max_metadata_bytes)",
            )
        if "" in tags or "" in attributes:
            name = "tags" if "" in tags else "attributes"
            raise invalid(field + name, f"{field}{name}: a tag or an attribute's name cannot be empty")

    def _check_text(self, field: str, text: str) -> None:
        try:
            size = len(text.encode())
        except UnicodeEncodeError:  # JSON can spell halves of characters
            raise invalid(field, f"{field} holds a character that UTF-8 cannot represent") from None
        if size > self.text_bytes:
            raise too_large(
                field, f"{field}: {size} bytes is over the limit of {self.text_bytes} (limits.max_text_bytes)"
            )
        if "\0" in text:
            raise invalid(field, f"{field} holds a NUL character: leave it out")
