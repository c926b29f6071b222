"""Model weights: which there are, where they live, how they get there.

`pull` is the only code of the project that reaches the network. Services start from what is there.
"""

from regionsearch.models.catalog import PROFILES, WEIGHTS, Profile, Weights, profile
from regionsearch.models.folders import file_digest, models_dir, pocket_dir
from regionsearch.models.pull import pull, verify

__all__ = [
    "PROFILES",
    "WEIGHTS",
    "Profile",
    "Weights",
    "file_digest",
    "models_dir",
    "pocket_dir",
    "profile",
    "pull",
    "verify",
]
