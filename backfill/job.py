"""Settings of a backfill: those of the gateway, the segmenter and the embedder."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pydantic import ValidationError
from pydantic_settings import SettingsError

from gateway.settings import GatewaySettings
from regionsearch.errors import invalid
from regionsearch.models.catalog import PROFILES
from regionsearch.v1 import search_pb2
from services.embedder.settings import EmbedderSettings
from services.segmenter.settings import SegmenterSettings

_CALL_S = 60.0


@dataclass(frozen=True)
class Job:
    """Settings of a backfill, sent to every worker.

    Attributes:
        gateway: Addresses of searcher and image store, limits, selection of regions.
        segmenter: The segmenter's model and options.
        embedder: The embedder's model and options.
        collection: A serialized `search_pb2.Collection`; empty until `with_collection`.
    """

    gateway: GatewaySettings
    segmenter: SegmenterSettings
    embedder: EmbedderSettings
    collection: bytes = b""

    @classmethod
    def read(
        cls,
        *,
        profile: str | None = None,
        searcher: str | None = None,
        image_store: str | None = None,
        wait_s: float = 300.0,
    ) -> Job:
        """Reads the settings as the processes do, from the environment and the TOML file.

        Args:
            profile: Overrides both models.
            searcher: Overrides the searcher's address.
            image_store: Overrides the image store.
            wait_s: Longest wait for a searcher that does not answer.

        Raises:
            RegionSearchError: INVALID_ARGUMENT, for a setting or the profile.
        """
        try:
            gateway, segmenter, embedder = GatewaySettings(), SegmenterSettings(), EmbedderSettings()
        except (ValidationError, SettingsError) as error:
            raise invalid("settings", f"invalid settings: {error}") from error
        timeouts = gateway.timeouts.model_copy(
            update={"restart_s": wait_s, "ingest_s": max(gateway.timeouts.ingest_s, wait_s + _CALL_S)}
        )
        given = {"timeouts": timeouts, "searcher": searcher, "image_store": image_store}
        if profile and profile not in PROFILES:
            raise invalid(
                "profile", f"{profile!r} is not a valid profile: expected one of {', '.join(PROFILES)}"
            )
        if profile:
            chosen = PROFILES[profile]
            segmenter = segmenter.model_copy(update={"model": chosen.segmenter})
            embedder = embedder.model_copy(update={"model": chosen.embedder})
        return cls(
            gateway.model_copy(update={name: value for name, value in given.items() if value is not None}),
            segmenter,
            embedder,
        )

    def with_collection(self, collection: search_pb2.Collection) -> Job:
        """The same job for a collection."""
        return replace(self, collection=collection.SerializeToString())

    @property
    def target(self) -> search_pb2.Collection:
        """The collection."""
        return search_pb2.Collection.FromString(self.collection)
