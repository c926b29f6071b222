"""Checks that a call still agrees with its collection: the model, and the generation that it began with."""

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


def check_generation(collection: str, present: str, begun: str | None) -> None:
    """Refuses to continue in a collection that was recreated or restored since a call or its first page.

    Raises:
        RegionSearchError: ABORTED.
    """
    if begun is not None and begun != present:
        raise RegionSearchError(
            Kind.ABORTED,
            f"collection {collection!r} was deleted and created again, or restored, since this call or its "
            "first page: start again from the first page",
            field="collection",
        )
