"""LanceDB without an index, as exact as we are: in this process, without a network between."""

from __future__ import annotations

import sys
from pathlib import Path

import lancedb  # lives in an environment of its own
import numpy as np
import pyarrow as pa
from driver import HITS, serve  # type: ignore[import-not-found]  # next to this program


def main(folder: Path) -> None:
    """Loads the data and serves."""
    vectors, tenth = np.load(folder / "vectors.npy"), np.load(folder / "tenth.npy")
    columns = {
        "row": pa.array(np.arange(len(vectors))),
        "tenth": pa.array(tenth),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
    }
    table = lancedb.connect(folder / "lance").create_table("vectors", pa.table(columns))

    def search(query: np.ndarray, filtered: bool) -> list[int]:
        asked = table.search(query).distance_type("dot").select(["row", "_distance"]).limit(HITS)
        if filtered:
            asked = asked.where("tenth", prefilter=True)
        return [int(row) for row in asked.to_arrow()["row"].to_pylist()]

    serve(search, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
