"""Settings of the gateway: ``REGIONSEARCH_GATEWAY_…``, or ``[gateway]`` in the TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, IPvAnyNetwork, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from gateway.rights import Scope
from regionsearch.images import ImageLimits
from regionsearch.schemas.requests.records import CropPolicyName
from regionsearch.texts import MetadataLimits
from regionsearch.v1 import segment_pb2, types_pb2
from services.runtime.settings import MIB, ClientTlsSettings, ServiceSettings, SettingsPart


class SelectionSettings(SettingsPart):
    """Which regions of an image are kept; what is absent is the segmenter's default."""

    min_side: int | None = Field(None, ge=0, description="Shortest side of the box, pixels.")
    min_area: int | None = Field(None, ge=0, description="Smallest area, pixels.")
    max_area_fraction: float | None = Field(None, gt=0, le=1, description="Largest share of the image.")
    min_stability_score: float | None = Field(None, ge=0, le=1)
    mask_nms_thresh: float | None = Field(None, ge=0, le=1, description="Mask IoU of near-duplicates.")
    max_regions: int | None = Field(None, ge=1, le=1000, description="Maximum number of regions per image.")

    def to_proto(self) -> segment_pb2.SelectionOptions:
        """As the segmenter takes it."""
        return segment_pb2.SelectionOptions(**self.model_dump(exclude_none=True))


class LimitSettings(SettingsPart):
    """What a caller may ask for."""

    max_image_bytes: int = Field(
        30 * MIB,
        gt=0,
        description="Size of one image file; it must fit into a message together with its masks.",
    )
    max_image_pixels: int = Field(
        50_000_000,
        gt=0,
        description="Width times height of an image. Segmenter and embedder have the same limit: raise the "
        "three together.",
    )
    max_decoded_bytes: int = Field(
        512 * MIB,
        gt=0,
        description="Memory, in bytes, for images being decoded for thumbnails, crops and renderings; "
        "further ones wait. No image counts as more than three quarters of it.",
    )
    max_request_bytes: int = Field(512 * MIB, gt=0, description="Size of the body of one HTTP request.")
    max_upload_bytes: int = Field(
        1024 * MIB, gt=0, description="Total size on disk of the bodies of current requests that add images."
    )
    max_body_bytes: int = Field(
        256 * MIB, gt=0, description="Total size in memory of the bodies of all other current requests."
    )
    max_files: int = Field(64, gt=0, description="Files in one request.")
    max_texts: int = Field(64, gt=0, description="Phrases in one query; negatives are counted separately.")
    max_page_size: int = Field(1000, gt=0, description="Maximum page size; larger requests are clamped.")
    max_tags: int = Field(50, ge=0, description="Tags that one request may give an image.")
    max_attributes: int = Field(50, ge=0, description="Attributes that one request may give an image.")
    max_text_bytes: int = Field(4096, gt=0, le=4096, description="Bytes of one tag or attribute, in UTF-8.")
    max_metadata_bytes: int = Field(
        16 << 10,
        ge=0,
        description="Bytes of all tags and attributes that one request may give an image. The searcher "
        "limits the total of an image, a little higher.",
    )
    max_images_in_work: int = Field(16, gt=0, description="Images being ingested at a time.")
    max_images_waiting: int = Field(512, ge=0, description="Images that may wait; more are refused with 429.")
    requests_per_s: float | None = Field(
        None, gt=0, description="Request rate per key, or per address if there are no keys."
    )
    anonymous_requests_per_s: float = Field(
        200.0,
        ge=0,
        description="Request rate per address if there are no keys and requests_per_s is not set, with "
        "bursts of ten seconds' worth. 0 disables the limit.",
    )
    requests_burst: int = Field(50, gt=0, description="Size of a burst within requests_per_s.")

    @property
    def image(self) -> ImageLimits:
        """Limits of one image."""
        return ImageLimits(self.max_image_bytes, self.max_image_pixels, "gateway")

    @property
    def metadata(self) -> MetadataLimits:
        """Limits of the tags and attributes of one request."""
        return MetadataLimits(
            self.max_tags, self.max_attributes, self.max_text_bytes, self.max_metadata_bytes
        )


class ConnectionSettings(SettingsPart):
    """Limits of HTTP connections."""

    max_connections: int = Field(
        1000,
        gt=0,
        description="Open connections, and never more than half of the process's file descriptors. Beyond "
        "that the longest idle one is closed; if none is idle, only health checks are answered.",
    )
    headers_s: float = Field(
        10.0, gt=0, description="Time limit for the headers of a request, and for a TLS handshake, seconds."
    )
    idle_s: int = Field(30, gt=0, description="Time after which an idle connection is closed, seconds.")
    stall_s: float = Field(
        20.0,
        gt=0,
        description="Time for which a sender or reader may be slower than min_bytes_per_s, seconds.",
    )
    max_unsent_bytes: int = Field(
        256 * MIB,
        gt=0,
        description="Total memory for responses that wait for their readers; beyond it the connections that "
        "have been reading for longest are closed.",
    )
    min_bytes_per_s: int = Field(
        4096, ge=0, description="Slowest accepted rate of sending a body and of reading a response."
    )


class TimeoutSettings(SettingsPart):
    """Time limits of one request, seconds; a caller's own earlier deadline wins."""

    ingest_s: float = Field(300.0, gt=0, description="Ingesting one image.")
    query_s: float = Field(60.0, gt=0, description="Everything else.")
    probe_s: float = Field(1.0, gt=0, description="Each probe of a readiness check.")
    restart_s: float = Field(
        30.0,
        ge=0,
        description="Waiting for a service while none of its replicas serves, as during a restart.",
    )


class SweepSettings(SettingsPart):
    """Deleting orphaned images of interrupted ingests; see `gateway.sweep`."""

    every_s: float | None = Field(None, gt=0, description="Seconds between two sweeps; absent: no sweeps.")
    older_than_s: float = Field(
        86_400.0,
        ge=0,
        description="Images stored within this time are left alone, seconds; must exceed an ingest.",
    )


class KeySettings(SettingsPart):
    """An API key and its rights."""

    key: SecretStr = Field(description="What callers send.")
    scopes: tuple[Scope, ...] = Field(
        min_length=1,
        description="search: look, search and count. write: add images, change names, tags and attributes. "
        "delete: delete images. admin: everything, creating, deleting and moving collections included.",
    )
    collections: tuple[str, ...] = Field(
        (), description="The only collections that it may see; others are unknown to it. Absent: all."
    )


class GatewaySettings(ServiceSettings):
    """The gateway process.

    One of `api_keys` that begins with ``read:`` may look and search, one that begins with ``write:`` may also
    add, change and delete images; every other may do everything. The prefix is part of the key. `keys` have
    rights of their own.
    """

    process: ClassVar[str] = "gateway"
    named_callers: ClassVar[bool] = False

    port: int = Field(50050, ge=0, le=65535, description="gRPC port; 0 takes a free one.")
    http_host: str | None = Field(
        None, description="Address of the HTTP server; the same as gRPC when absent."
    )
    http_port: int = Field(8000, ge=0, le=65535, description="HTTP port; 0 takes a free one.")
    http_port_file: Path | None = Field(
        None, description="File to which the HTTP port is written once it listens."
    )
    segmenter: str = Field("127.0.0.1:50051", description="host:port, a list of them, or dns:///name:port.")
    embedder: str = Field("127.0.0.1:50052", description="host:port, a list of them, or dns:///name:port.")
    other_embedder: str = Field(
        "",
        description="Embedders of a second model, in the same form: collections of that model are served by "
        "them, and a collection can be moved from one model to the other (reindex).",
    )
    searcher: str = Field("127.0.0.1:50053", description="host:port, a list of them, or dns:///name:port.")
    searcher_reads: str = Field(
        "",
        description="Searchers that searches and look-ups are spread over, in the same form: the one that "
        "writes, as named by `searcher`, and its read replicas. Empty: that one alone.",
    )
    keys: tuple[KeySettings, ...] = Field(
        (),
        description="API keys with scopes and collections, in addition to api_keys, as JSON: "
        '[{"key": "…", "scopes": ["search", "write"], "collections": ["holiday"]}].',
    )
    backend_tls: ClientTlsSettings = ClientTlsSettings()
    backend_api_key: SecretStr | None = Field(None, description="Sent to the services.")
    image_store: str = Field(
        "data/images",
        description="Where images are stored: a folder, or any fsspec URL such as s3://bucket/path.",
    )
    thumbnail_cache_bytes: int = Field(64 * MIB, ge=0, description="Memory for cached thumbnails.")
    crop_policy: CropPolicyName = Field(
        "default", description="Crop policy of new collections; default is the embedder's."
    )
    selection: SelectionSettings = SelectionSettings()
    embed_chunk: int = Field(
        1000,
        gt=0,
        le=1000,
        description="Maximum number of regions in one call to the embedder. An image with more is sent in "
        "several calls; a smaller value spreads one image over several replicas.",
    )
    whole_image_margin: float | None = Field(
        None,
        ge=0,
        description="A whole image ranks before its own region if that scores higher by less than this.",
    )
    limits: LimitSettings = LimitSettings()
    connections: ConnectionSettings = ConnectionSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    sweep: SweepSettings = SweepSettings()
    strip_metadata: bool = Field(
        False,
        description="Serve images without EXIF, XMP, IPTC and comments, and so without positions: JPEG, PNG "
        "and WebP with the same pixels, GIF, TIFF, HEIC and AVIF as WebP of at most 4,096 pixels. The stored "
        "file does not change. Attributes (taken_at, camera, place) are not read from it either.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Web pages of other origins that may call the API; * for all. Separated by commas."
    )

    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Host names under which the gateway answers, such as search.example.org or "
        "*.example.org; * for any. IP addresses, names without a dot and the host settings are "
        "always allowed; with API keys any name is, unless some are given here. Separated by commas.",
    )

    trusted_proxies: Annotated[tuple[IPvAnyNetwork, ...], NoDecode] = Field(
        (),
        description="Addresses or networks (10.0.0.0/8) of proxies whose X-Forwarded-For is trusted. "
        "Separated by commas.",
    )

    @field_validator("keys")
    @classmethod
    def _sendable(cls, keys: tuple[KeySettings, ...]) -> tuple[KeySettings, ...]:
        cls._sendable_keys(tuple(one.key for one in keys))
        return keys

    @model_validator(mode="after")
    def _different(self) -> GatewaySettings:
        every = [key.get_secret_value() for key in (*self.api_keys, *(one.key for one in self.keys))]
        if len(set(every)) < len(every):
            raise ValueError("an API key is given twice: its rights would not be clear")
        return self

    @property
    def has_keys(self) -> bool:
        """Whether callers need a key."""
        return bool(self.api_keys or self.keys)

    @field_validator("cors_origins", "allowed_hosts", "trusted_proxies", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @property
    def crop_policy_value(self) -> types_pb2.CropPolicy.ValueType:
        """The policy of new collections, UNSPECIFIED for the embedder's default."""
        return crop_policy_value(self.crop_policy)


def crop_policy_value(name: CropPolicyName) -> types_pb2.CropPolicy.ValueType:
    """The contract's value of a crop policy's name."""
    if name == "default":
        return types_pb2.CROP_POLICY_UNSPECIFIED
    return types_pb2.CropPolicy.Value(f"CROP_POLICY_{name.upper()}")
