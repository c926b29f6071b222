"""Relevancy of something found: how much more like the query it is than like what is not meant."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SCALE = 100.0
"""Factor of the cosines in the softmax: CLIP's trained logit scale (arXiv 2103.00020, section 2.5)."""


def relevancies(scores: NDArray[np.floating], negatives: NDArray[np.floating]) -> NDArray[np.float64]:
    """The smallest softmax of each score against one of the negatives' scores.

    Relevancy as in LERF (arXiv 2303.09553, section 3.4), with CLIP's own scale.

    Args:
        scores: Cosines with the query, shape (rows,).
        negatives: Cosines with the negatives, shape (rows, negatives), at least one column.
    """
    excess = (negatives.max(axis=1) - scores).astype(np.float64)
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(SCALE * excess, -500.0, 500.0))))
