"""Model weights: which there are, where they live, whether they are whole.

Services start from what is there. `regionsearch.models.download` is the only code of the project that reaches
the network.
"""

from regionsearch.models.catalog import PROFILES, WEIGHTS, Profile, Weights, profile
from regionsearch.models.store import (
    POCKET,
    checked_digest,
    file_digest,
    find,
    models_dir,
    pocket_dir,
    verify,
    verify_pocket,
)

__all__ = [
    "POCKET",
    "PROFILES",
    "WEIGHTS",
    "Profile",
    "Weights",
    "checked_digest",
    "file_digest",
    "find",
    "models_dir",
    "pocket_dir",
    "profile",
    "verify",
    "verify_pocket",
]
