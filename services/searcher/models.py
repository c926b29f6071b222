"""The rule that vectors of different models do not meet."""

from __future__ import annotations

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.types import ModelIdentity


def check_model(collection: str, kept: ModelIdentity, sent: ModelIdentity) -> None:
    """Refuses vectors of another model or crop policy.

    Raises:
        RegionSearchError: MODEL_MISMATCH, naming both.
    """
    if not kept.agrees_with(sent):
        raise RegionSearchError(
            Kind.MODEL_MISMATCH,
            f"collection {collection!r} holds vectors of {kept}, these are of {sent}: use that model, or "
            "another collection",
            field="model",
            metadata={"collection_model": str(kept), "request_model": str(sent)},
        )
