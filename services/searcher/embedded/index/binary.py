"""Binary codes: a first pass in Hamming space, then the candidates' full vectors.

Codes are signs after a learned projection. Rotating the principal components at random is nearly as good
as ITQ and needs a fraction of its training; signs of unrotated components or of the raw vector are
useless, because a few components carry most of the variance (Gong and Lazebnik, "Iterative Quantization",
CVPR 2011).
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regionsearch.errors import Kind, RegionSearchError, invalid
from services.searcher.embedded.faiss_compat import faiss, selector, to_single
from services.searcher.embedded.index.columns import Columns, Positions
from services.searcher.embedded.index.compaction import CompactionInput
from services.searcher.embedded.index.index_files import Arrays
from services.searcher.embedded.index.ivf import saved_recalls
from services.searcher.embedded.index.live_queries import QueryKind
from services.searcher.embedded.index.nearest import answer_grouped, nearest_of
from services.searcher.embedded.index.recall import worst
from services.searcher.embedded.index.segments import Neighbors, SegmentQuery
from services.searcher.types import CodeMethod, CodeSpec, Vectors

_TRAIN_ROWS = 50_000
_ITQ_ROUNDS = 50
_SEED = 20_111
_GATHER_ROWS = 1000
_RERANK_PART = 4


@dataclass(frozen=True, slots=True, eq=False)
class Codec:
    """The projection: bit `i` of a code is set where ``(W x + b)[i] > 0``.

    Attributes:
        weight: W, shape (bits, dimension).
        bias: b, shape (bits,).
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def encode(self, vectors: Vectors) -> NDArray[np.uint8]:
        """Codes, shape (vectors, bits / 8). tanh keeps the sign, so a learned head needs none here."""
        return np.packbits(vectors @ self.weight.T + self.bias > 0, axis=1, bitorder="little")

    def digest(self) -> NDArray[np.uint8]:
        """32 bytes that tell it from other codecs."""
        hashed = hashlib.sha256(self.weight.tobytes() + self.bias.tobytes())
        return np.frombuffer(hashed.digest(), np.uint8)

    def to_bytes(self) -> bytes:
        """For the record store."""
        buffer = io.BytesIO()
        np.savez(buffer, weight=self.weight, bias=self.bias)
        return buffer.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> Codec:
        """Reads what `to_bytes` has written.

        Raises:
            ValueError: The bytes are not a codec.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                weight, bias = arrays["weight"].astype(np.float32), arrays["bias"].astype(np.float32)
        except (OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"no weight and bias in it ({error})") from error
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise ValueError(f"weight {weight.shape} and bias {bias.shape} do not fit each other")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError("weight or bias is not finite")
        return Codec(weight, bias)


def learned_codec(folder: Path, spec: CodeSpec, dimension: int) -> Codec:
    """Loads a learned head: an `.npz` file with `weight` (bits, dimension) and `bias` (bits,).

    Raises:
        RegionSearchError: INVALID_ARGUMENT, naming the file, when it is missing or does not fit.
    """
    path = folder / spec.head
    try:
        codec = Codec.from_bytes(path.read_bytes())
    except (OSError, ValueError) as error:
        raise invalid(
            "binary_codes.head", f"{spec.head} in {folder} is not a learned head: {error}"
        ) from error
    if codec.weight.shape != (spec.bits, dimension):
        raise invalid(
            "binary_codes.head",
            f"{spec.head} has weights {codec.weight.shape}; ({spec.bits}, {dimension}) is needed",
        )
    return codec


def train_codec(spec: CodeSpec, sample: Vectors) -> Codec:
    """Learns a projection from a collection's own vectors.

    Raises:
        RegionSearchError: FAILED_PRECONDITION for a learned head, which comes from a file.
    """
    if spec.method is CodeMethod.LEARNED:
        raise RegionSearchError(Kind.FAILED_PRECONDITION, "a learned head is loaded, not trained")
    mean = sample.mean(axis=0)
    centred = sample - mean
    _, axes = np.linalg.eigh(np.cov(centred, rowvar=False).astype(np.float64))
    components = axes[:, ::-1][:, : spec.bits].T  # (bits, dimension), the largest variance first
    random = np.random.default_rng(_SEED).standard_normal((spec.bits, spec.bits))
    rotation, _ = np.linalg.qr(random)
    if spec.method is CodeMethod.ITQ:
        projected = centred @ components.T
        for _ in range(_ITQ_ROUNDS):
            signs = np.sign(projected @ rotation.T)
            left, _, right = np.linalg.svd(signs.T @ projected)
            rotation = left @ right
    weight = (rotation @ components).astype(np.float32)
    return Codec(weight, -(weight @ mean).astype(np.float32))


class CodeSegment:
    """Codes for the first pass and half-precision vectors for the second.

    Args:
        columns: The rows' columns.
        vectors: Shape (rows, dimension), float16.
        codec: Makes the codes of queries.
        codes: Shape (rows, bits / 8).
        rerank_factor: Least number of candidates that are scored again for each requested hit.

    Attributes:
        effort: See `Approximate`; candidates scored again for each hit, where they are more than that.
        most_effort: See `Approximate`.
        recalls: See `Approximate`.
        seen: See `Approximate`.
    """

    kind = "codes"
    sealed = True
    approximate = True

    def __init__(
        self,
        columns: Columns,
        vectors: NDArray[np.float16],
        codec: Codec,
        codes: NDArray[np.uint8],
        rerank_factor: int,
    ) -> None:
        self.columns = columns
        self.vectors = vectors
        self.codec = codec
        self.rerank_factor = rerank_factor
        self.effort = 1
        self.most_effort = max(1, columns.used)
        self.recalls: dict[QueryKind, float] = {}
        self.seen: set[QueryKind] = set()
        self._index = faiss.IndexBinaryFlat(8 * codes.shape[1])
        self._index.add(codes)

    @property
    def recall(self) -> float | None:
        """See `IndexSegment`."""
        return worst(self.recalls)

    def gather(self, rows: Positions) -> Vectors:
        """See `IndexSegment.gather`."""
        return to_single(self.vectors[rows])

    def nearest(self, requests: Sequence[SegmentQuery]) -> list[list[Neighbors]]:
        """See `IndexSegment.nearest`; approximate unless asked otherwise."""
        return answer_grouped(requests, self, _GATHER_ROWS, self._search)

    def _search(self, queries: Vectors, request: SegmentQuery, count: int) -> list[Neighbors]:
        factor = max(self.rerank_factor, self.effort) * request.effort
        first_pass = int(min(request.matching, np.ceil(count * factor)))
        if first_pass > request.matching // _RERANK_PART:  # to score all of them again costs no more
            allowed = np.arange(request.rows) if request.mask is None else np.flatnonzero(request.mask)
            return nearest_of(self, allowed, queries, request, count)
        parameters = None
        if request.mask is not None or request.rows < self.columns.used:
            mask = np.zeros(self.columns.used, np.bool_)
            mask[: request.rows] = True if request.mask is None else request.mask
            parameters = faiss.SearchParameters(sel=selector(mask))
        _, rows = self._index.search(self.codec.encode(queries), first_pass, params=parameters)
        found: list[Neighbors] = []
        for query, row in zip(queries, rows, strict=True):
            found += nearest_of(self, np.sort(row[row >= 0]), query[np.newaxis], request, count)
        return found

    @property
    def vector_bytes(self) -> int:
        """See `IndexSegment.vector_bytes`."""
        return int(self.vectors.nbytes) + self.columns.used * int(self._index.code_size)

    def to_arrays(self) -> Arrays:
        """What `restore_codes` needs in addition to the rows."""
        codes = faiss.vector_to_array(self._index.xb).reshape(-1, self._index.code_size)
        return {
            "codes": codes,
            "codec": self.codec.digest(),
            "effort": np.int64(self.effort),
            **{f"recall_{kind.value}": np.float64(recall) for kind, recall in self.recalls.items()},
        }


def restore_codes(
    compaction: CompactionInput, rows: Positions, arrays: Arrays, codec: Codec, rerank_factor: int
) -> CodeSegment:
    """The segment that `to_arrays` has described.

    Args:
        compaction: The rows.
        rows: Which of the described rows they are.
        arrays: What `to_arrays` returned.
        codec: The collection's.
        rerank_factor: The collection's.

    Raises:
        KeyError: `arrays` is something else.
        ValueError: The codes were made by another codec.
    """
    if not np.array_equal(arrays["codec"], codec.digest()):
        raise ValueError("its codes are of another codec")
    vectors = np.concatenate([block.astype(np.float16) for block in compaction.vectors()])
    segment = CodeSegment(compaction.columns(), vectors, codec, arrays["codes"][rows], rerank_factor)
    segment.effort, segment.recalls = int(arrays["effort"]), saved_recalls(arrays)
    return segment


def build_codes(compaction: CompactionInput, codec: Codec, rerank_factor: int) -> CodeSegment:
    """A segment with codes, which is then to be tuned."""
    vectors = np.concatenate([block.astype(np.float16) for block in compaction.vectors()])
    codes = np.concatenate([codec.encode(block) for block in compaction.vectors()])
    return CodeSegment(compaction.columns(), vectors, codec, codes, rerank_factor)


def training_sample(compaction: CompactionInput) -> Vectors:
    """Rows to learn a codec from."""
    return compaction.sample(_TRAIN_ROWS)
