"""Search and scroll requests, and page tokens: where the next page begins, for which request and state."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from regionsearch.errors import RegionSearchError, invalid, too_large
from regionsearch.v1 import search_pb2
from services.searcher.filter_requests import given
from services.searcher.queries import Page, Position, Query
from services.searcher.requests import Reader
from services.searcher.scrolling import Facet, RecordPage, Scroll
from services.searcher.types import Vectors

_SIGNATURE_BYTES = 16
_MAX_LENGTH = 16_384  # two ids, each character up to 12 bytes in JSON, and a thousand numbers


VectorsOf = Callable[[str, Sequence[str], str], Vectors]
"""Reads the vectors of records: of a collection, by ids, which a field holds."""


class Key(Protocol):
    """Returns the key that signs tokens; see `Engine.token_key`."""

    def __call__(self, *, fresh: bool) -> bytes:
        """The key; read again where it has to be fresh."""


def fingerprint(request: bytes) -> str:
    """A digest of a request, which binds its page tokens to it."""
    return hashlib.sha256(request).hexdigest()[:16]


class PageTokens:
    """Signs and reads page tokens.

    Args:
        key: Gives the key of the signature.
    """

    def __init__(self, key: Key) -> None:
        self._key = key

    def encode(self, *parts: Any) -> str:
        """An opaque, signed token of JSON values; the first one is a fingerprint."""
        payload = json.dumps(parts, separators=(",", ":")).encode()
        signature = _signature(self._key(fresh=False), payload)
        return base64.urlsafe_b64encode(signature + payload).decode().rstrip("=")

    def decode(self, token: str, request_fingerprint: str, *types: type) -> list[Any]:
        """The values behind the fingerprint.

        Args:
            token: What `encode` made.
            request_fingerprint: That of the present request.
            types: Expected types of the values.

        Raises:
            RegionSearchError: INVALID_ARGUMENT for a token that is damaged or belongs to another request.
        """
        try:
            if len(token) > _MAX_LENGTH:
                raise ValueError("no token is that long")
            data = base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
        except ValueError as error:
            raise _refused("is damaged") from error
        signature, payload = data[:_SIGNATURE_BYTES], data[_SIGNATURE_BYTES:]
        if not any(
            hmac.compare_digest(signature, _signature(self._key(fresh=fresh), payload))
            for fresh in (False, True)
        ):
            raise _refused("is damaged, or was not made by this searcher")
        parts = json.loads(payload)
        if parts[0] != request_fingerprint:
            raise _refused("belongs to another request; repeat that one, changing nothing but the token")
        if [type(part) for part in parts[1:]] != list(types):
            raise _refused("is of another version; begin again with the first page")
        return list(parts[1:])


def pack(numbers: Iterable[int]) -> str:
    """Whole numbers from 0 on, in any order, as a short text."""
    packed, before = bytearray(), 0
    for number in sorted(numbers):
        step, before = number - before, number
        while step > 0x7F:
            packed.append(step & 0x7F | 0x80)
            step >>= 7
        packed.append(step)
    return base64.b85encode(bytes(packed)).decode()


def unpack(text: str) -> tuple[int, ...]:
    """Reads what `pack` has written, ascending."""
    numbers: list[int] = []
    step = shift = last = 0
    for byte in base64.b85decode(text):
        step |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            last += step
            numbers.append(last)
            step = shift = 0
    return tuple(numbers)


def _signature(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, payload, "sha256")[:_SIGNATURE_BYTES]


def _refused(why: str) -> RegionSearchError:
    return invalid("page_token", f"the page token {why}")


_HITS = 20
_MAX_EFFORT = 1000


class SearchReader:
    """Reads search requests.

    Args:
        read: Reads what they have in common with other requests.
        tokens: Signs and reads page tokens.
    """

    def __init__(self, read: Reader, tokens: PageTokens) -> None:
        self._read = read
        self._tokens = tokens

    def next_page_token(self, page: Page, digest: str) -> str:
        """The token of the page that follows; empty where none does."""
        if not page.more or not page.hits:
            return ""
        last = page.hits[-1]
        place = page.after or last.position
        return self._tokens.encode(
            digest, page.generation, page.seq, last.rank, place.score, place.level, place.image_id,
            place.record_id, pack(page.shown),
        )  # fmt: skip

    def queries(self, request: search_pb2.SearchRequest, vectors_of: VectorsOf) -> tuple[list[Query], str]:
        """The ranked lists that a request asks for, and its fingerprint.

        Args:
            request: The request.
            vectors_of: Reads the vectors of the records that it names.

        Raises:
            RegionSearchError: INVALID_ARGUMENT or TOO_LARGE, naming the field.
        """
        read, limits, dimension = self._read, self._read.limits, request.model.dimension
        vectors: Vectors = np.empty((0, dimension), np.float32)
        if request.HasField("queries") or not request.query_record_ids:
            vectors = read.vectors(request.queries, "queries", dimension)
        asked = len(vectors) + len(request.query_record_ids)
        if not 1 <= asked <= limits.max_queries:
            raise invalid("queries.shape", f"1 to {limits.max_queries} query vectors, not {asked}")
        negatives: Vectors = np.empty((0, dimension), np.float32)
        if request.HasField("negatives") and request.negatives.data:
            negatives = read.vectors(request.negatives, "negatives", dimension)
        unwanted = len(negatives) + len(request.negative_record_ids)
        if unwanted > limits.max_negatives:
            raise too_large("negatives", f"{unwanted} is over the limit of {limits.max_negatives} negatives")
        for mode, known in (("query_mode", search_pb2.QueryMode), ("group_by", search_pb2.GroupBy)):
            if getattr(request, mode) not in known.values():
                raise invalid(mode, f"{getattr(request, mode)} is not a known {mode}")
        best = request.query_mode == search_pb2.QUERY_MODE_BEST
        for name in (
            "min_score", "min_relevancy", "relative_cutoff", "whole_image_margin", "effort",
            "fold_similarity", "diversity",
        ):  # fmt: skip
            if request.HasField(name) and not np.isfinite(getattr(request, name)):
                raise invalid(name, f"{name} must be a finite number")
        if request.HasField("relative_cutoff") and not 0.0 <= request.relative_cutoff <= 1.0:
            raise invalid("relative_cutoff", "relative_cutoff is between 0 and 1")
        if request.whole_image_margin < 0.0:
            raise invalid("whole_image_margin", "whole_image_margin cannot be negative")
        if request.HasField("effort") and not 0.0 < request.effort <= _MAX_EFFORT:
            raise invalid(
                "effort", f"effort must be above 0 and at most {_MAX_EFFORT}; set exact to search all records"
            )
        if request.HasField("fold_similarity") and not 0.0 < request.fold_similarity <= 1.0:
            raise invalid("fold_similarity", "fold_similarity must be above 0 and at most 1")
        if not 0.0 <= request.diversity <= 1.0:
            raise invalid("diversity", "diversity is between 0 and 1")
        effort = request.effort if request.HasField("effort") else 1.0
        bare = search_pb2.SearchRequest()
        bare.CopyFrom(request)
        bare.page_token = ""
        bare.ClearField("min_seq")
        digest = fingerprint(bare.SerializeToString(deterministic=True))
        seq, generation, after, skipped, shown = None, None, None, 0, ""
        if request.page_token:
            if asked > 1 and not best:
                raise invalid("page_token", "paging needs a single query, or QUERY_MODE_BEST")
            generation, seq, skipped, *place, shown = self._tokens.decode(
                request.page_token, digest, str, int, int, float, int, str, str, str
            )
            after = Position(*place)
        if request.query_record_ids:
            stored = self._stored(request, "query_record_ids", vectors_of)
            vectors = np.concatenate([vectors, stored])
        if request.negative_record_ids:
            stored = self._stored(request, "negative_record_ids", vectors_of)
            negatives = np.concatenate([negatives, stored])
        common = Query(
            vectors=vectors,
            negatives=negatives,
            level=read.level(request.level),
            filter=read.filter(request.filter),
            **given(
                request,
                *("min_score", "min_relevancy", "relative_cutoff", "whole_image_margin"),
                *("fold_similarity", "diversity"),
            ),
            group_by_image=request.group_by == search_pb2.GROUP_BY_IMAGE,
            limit=read.page_size(request.page_size, _HITS),
            seq=seq,
            generation=generation,
            after=after,
            skipped=skipped,
            shown=unpack(shown),
            effort=np.inf if request.exact else effort,
            include_masks=request.include_masks,
            codes_only=request.codes_only,
        )
        if best:
            return [common], digest
        return [replace(common, vectors=vectors[i : i + 1]) for i in range(len(vectors))], digest

    @staticmethod
    def _stored(request: search_pb2.SearchRequest, field: str, vectors_of: VectorsOf) -> Vectors:
        """The vectors of the records that a field names, of unit length."""
        stored = vectors_of(request.collection, list(getattr(request, field)), field)
        if stored.shape[1] != request.model.dimension:
            raise invalid(
                "model.dimension",
                f"the model's dimension is {request.model.dimension}, that of {field} is {stored.shape[1]}",
            )
        unit: Vectors = stored / np.linalg.norm(stored, axis=1, keepdims=True)
        return unit


_RECORDS = 100
_VALUES = 20
_MAX_FACETS = 16


class ScrollReader:
    """Reads requests for records by filter, and for how many there are.

    Args:
        read: Reads what they have in common with other requests.
        tokens: Signs and reads page tokens.

    Every method raises INVALID_ARGUMENT or TOO_LARGE, naming the field.
    """

    def __init__(self, read: Reader, tokens: PageTokens) -> None:
        self._read = read
        self._tokens = tokens

    def scroll(self, request: search_pb2.ScrollRequest) -> tuple[Scroll, str]:
        """The page that a request asks for, and the request's fingerprint."""
        bare = search_pb2.ScrollRequest()
        bare.CopyFrom(request)
        for name in ("page_size", "page_token", "min_seq"):
            bare.ClearField(name)
        digest = fingerprint(b"scroll" + bare.SerializeToString(deterministic=True))
        generation, after = None, None
        if request.page_token:
            generation, *place = self._tokens.decode(request.page_token, digest, str, int, str, int, str)
            after = (place[0], place[1], place[2], place[3])
        asked = Scroll(
            level=self._read.level(request.level),
            filter=self._read.filter(request.filter),
            limit=self._read.page_size(request.page_size, _RECORDS),
            after=after,
            generation=generation,
            include_masks=request.include_masks,
            include_vectors=request.include_vectors,
        )
        return asked, digest

    def next_page_token(self, page: RecordPage, digest: str) -> str:
        """The token of the page that follows; empty where none does."""
        return self._tokens.encode(digest, page.generation, *page.next_place) if page.next_place else ""

    def facets(self, request: search_pb2.CountRequest) -> list[Facet]:
        """What to count by."""
        if len(request.facets) > _MAX_FACETS:
            raise too_large("facets", f"{len(request.facets)} is over the limit of {_MAX_FACETS} facets")
        facets: list[Facet] = []
        for number, message in enumerate(request.facets):
            field = f"facets[{number}]"
            if message.tags == bool(message.attribute):
                raise invalid(field, f"{field} must have either tags or an attribute")
            self._read.texts(field, [message.attribute])
            limit = self._read.page_size(message.limit, _VALUES, f"{field}.limit")
            facets.append(Facet(message.attribute, limit))
        return facets
