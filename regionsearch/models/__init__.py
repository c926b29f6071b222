"""Model weights: which there are, where they live, whether they are whole.

Services start from what is there. `regionsearch.models.download` is the only code of the project that reaches
the network.
"""

from regionsearch.models.catalog import PROFILES, WEIGHTS, Profile, Weights, profile
from regionsearch.models.open_clip import open_clip_weights, split_open_clip
from regionsearch.models.store import (
    POCKET,
    checked_digest,
    file_digest,
    find,
    find_hub_file,
    look_up,
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
    "find_hub_file",
    "look_up",
    "models_dir",
    "open_clip_weights",
    "pocket_dir",
    "profile",
    "split_open_clip",
    "verify",
    "verify_pocket",
]
