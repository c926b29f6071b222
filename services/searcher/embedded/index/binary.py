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
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from regionsearch.errors import invalid
from services.searcher.embedded.faiss_compat import faiss, selector
from services.searcher.embedded.index.approximate import ApproximateSegment, store_vectors
from services.searcher.embedded.index.code_training import train_head
from services.searcher.embedded.index.columns import Columns, Positions
from services.searcher.embedded.index.compaction import CompactionInput
from services.searcher.embedded.index.index_files import SavedIndex
from services.searcher.embedded.index.segment_files import Arrays, SegmentFiles, StoredVectors
from services.searcher.embedded.index.segments import SegmentQuery
from services.searcher.types import CodeMethod, CodeSpec, Vectors

_TRAIN_ROWS = 50_000
_RERANK_PART = 4

_log = structlog.get_logger(__name__)


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
        _log.info("a learned head cannot be read", path=str(path), error=str(error))
        # Callers from other machines need not know the searcher's folders.
        reason = error.strerror if isinstance(error, OSError) else error
        raise invalid(
            "binary_codes.head",
            f"{spec.head} in the searcher's embedded.heads_folder is not a learned head: {reason}",
        ) from error
    if codec.weight.shape != (spec.bits, dimension):
        raise invalid(
            "binary_codes.head",
            f"{spec.head} has weights {codec.weight.shape}; ({spec.bits}, {dimension}) is needed",
        )
    return codec


def train_codec(spec: CodeSpec, sample: Vectors) -> Codec:
    """Learns a projection from a collection's own vectors."""
    dimension = sample.shape[1]
    if spec.method is CodeMethod.LEARNED:
        start = replace(spec, method=CodeMethod.PCA_ROTATION, bits=min(spec.bits, dimension))
        return Codec(*train_head(train_codec(start, sample).weight, spec.bits, sample))
    if spec.method is CodeMethod.ITQ:
        transform = faiss.ITQTransform(dimension, spec.bits, True)
        transform.train(sample)
        linear, mean = transform.pca_then_itq, faiss.vector_to_array(transform.mean)
    else:
        linear, mean = faiss.PCAMatrix(dimension, spec.bits, 0.0, True), sample.mean(axis=0)
        linear.train(sample)
    weight = faiss.vector_to_array(linear.A).reshape(spec.bits, dimension)
    return Codec(weight, -(weight @ mean))


class CodeSegment(ApproximateSegment):
    """Binary codes for the first pass; the effort is the number of candidates for each hit.

    Args:
        columns: The rows' columns.
        vectors: Shape (rows, dimension).
        codec: Makes the codes of queries.
        codes: Shape (rows, bits / 8).
        rerank_factor: Least number of candidates that are scored again for each requested hit.
        files: Where it is stored.
    """

    kind = "codes"

    def __init__(
        self,
        columns: Columns,
        vectors: StoredVectors,
        codec: Codec,
        codes: NDArray[np.uint8],
        rerank_factor: int,
        files: SegmentFiles,
    ) -> None:
        super().__init__(columns, vectors, files, most_effort=max(1, columns.used))
        self.codec = codec
        self.rerank_factor = rerank_factor
        self._index = faiss.IndexBinaryFlat(8 * codes.shape[1])
        self._index.add(codes)

    def candidates(self, queries: Vectors, request: SegmentQuery, count: int) -> Positions | None:
        """See `ApproximateSegment.candidates`."""
        factor = max(self.rerank_factor, self.effort) * request.effort
        first_pass = int(min(request.matching, np.ceil(count * factor)))
        if first_pass > request.matching // _RERANK_PART:
            return None
        mask = self.passing(request)
        selection = {} if mask is None else {"sel": selector(mask)}
        parameters = faiss.SearchParameters(**selection)
        rows: Positions = self._index.search(self.codec.encode(queries), first_pass, params=parameters)[1]
        return rows

    @property
    def vector_bytes(self) -> int:
        """See `IndexSegment.vector_bytes`; the codes."""
        return self.columns.used * int(self._index.code_size)

    def codes(self) -> NDArray[np.uint8]:
        """A copy of the codes, shape (rows, bits / 8)."""
        copy: NDArray[np.uint8] = faiss.vector_to_array(self._index.xb).reshape(-1, self._index.code_size)
        return copy

    def to_arrays(self) -> Arrays:
        """See `ApproximateSegment.to_arrays`."""
        return {"codes": self.codes(), "codec": self.codec.digest(), **super().to_arrays()}


def restore_codes(saved: SavedIndex, columns: Columns, codec: Codec, rerank_factor: int) -> CodeSegment:
    """The segment that was saved.

    Args:
        saved: Its files.
        columns: Its rows.
        codec: The collection's.
        rerank_factor: The collection's.

    Raises:
        KeyError: Something else was saved.
        ValueError: The codes were made by another codec, or the files do not fit the rows.
    """
    arrays = saved.arrays
    if not np.array_equal(arrays["codec"], codec.digest()):
        raise ValueError("its codes are of another codec")
    vectors = saved.files.vectors(columns.used, codec.weight.shape[1])
    segment = CodeSegment(columns, vectors, codec, arrays["codes"], rerank_factor, saved.files)
    segment.restore(arrays)
    return segment


def build_codes(
    compaction: CompactionInput, codec: Codec, rerank_factor: int, files: SegmentFiles | None = None
) -> CodeSegment:
    """A segment with codes, which is then to be tuned.

    Raises:
        OSError: The disk refuses it.
    """
    files = files or SegmentFiles()
    vectors = store_vectors(compaction, files)
    codes = np.concatenate([codec.encode(block) for block in compaction.vectors()])
    return CodeSegment(compaction.columns(), vectors, codec, codes, rerank_factor, files)


def training_sample(compaction: CompactionInput) -> Vectors:
    """Rows to learn a codec from."""
    return compaction.sample(_TRAIN_ROWS)
