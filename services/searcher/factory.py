"""Chooses the engine that the settings name."""

from __future__ import annotations

from collections.abc import Callable

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.engine import Engine
from services.searcher.settings import SearcherSettings


def open_engine(settings: SearcherSettings, fail: Callable[[str], None]) -> Engine:
    """Opens the engine; its libraries are imported only then.

    Args:
        settings: Those of the process.
        fail: Called with a reason when the process should end.

    Raises:
        RegionSearchError: The data is damaged or in use, or the engine's packages are missing.
    """
    if settings.engine == "embedded":
        from services.searcher.embedded.engine import EmbeddedEngine
        from services.searcher.embedded.replica import ReplicaEngine

        def lost(error: BaseException) -> None:
            fail(f"the index lost the store: {error}")

        if settings.follow:
            return ReplicaEngine(settings.embedded, lost, settings.follow)
        return EmbeddedEngine(settings.embedded, lost)
    try:
        from services.searcher.milvus.engine import MilvusEngine
    except ImportError as error:
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION,
            f"the milvus engine needs a package ({error.name}): pip install pymilvus",
        ) from error
    return MilvusEngine(settings.milvus)
