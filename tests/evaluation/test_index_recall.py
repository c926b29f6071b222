import numpy as np

from evaluation.index_recall import ENOUGH, index_recall


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_the_searchers_own_indexes_are_measured_against_exact_search(rng):
    centres = unit(rng.standard_normal((40, 32)))
    vectors = unit(centres[rng.integers(40, size=ENOUGH)] + 0.1 * rng.standard_normal((ENOUGH, 32)))
    queries = unit(centres + 0.05 * rng.standard_normal((40, 32)))
    found = index_recall(vectors, queries)
    assert [name.split(" (")[0] for name in found] == ["IVF, half precision", "32-bit codes", "32-bit codes"]
    # All of them look at far more candidates than the ten that are asked for.
    assert all(0.8 < recall <= 1 for recall in found.values()), found


def test_few_vectors_are_not_worth_an_index():
    assert index_recall(np.eye(8, dtype=np.float32), np.eye(8, dtype=np.float32)) == {}
