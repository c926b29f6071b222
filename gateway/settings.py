"""Settings of the gateway: ``REGIONSEARCH_GATEWAY_…``, or ``[gateway]`` in the TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, SecretStr, field_validator
from pydantic_settings import NoDecode

from regionsearch.images import ImageLimits
from regionsearch.metadata import MetadataLimits
from regionsearch.rpc import TlsFiles
from regionsearch.schemas.requests.records import CropPolicyName
from regionsearch.v1 import segment_pb2, types_pb2
from services.runtime.settings import MIB, ServiceSettings


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SelectionSettings(_Part):
    """Which regions of an image are kept; what is absent is the segmenter's default."""

    min_side: int | None = Field(None, ge=0, description="Shortest side of the box, pixels.")
    min_area: int | None = Field(None, ge=0, description="Smallest area, pixels.")
    max_area_fraction: float | None = Field(None, gt=0, le=1, description="Largest part of the image.")
    min_stability_score: float | None = Field(None, ge=0, le=1)
    mask_nms_thresh: float | None = Field(None, ge=0, le=1, description="Mask IoU of near-duplicates.")
    max_regions: int | None = Field(None, ge=1, le=1000, description="At most this many.")

    def to_proto(self) -> segment_pb2.SelectionOptions:
        """As the segmenter takes it."""
        return segment_pb2.SelectionOptions(**self.model_dump(exclude_none=True))


class LimitSettings(_Part):
    """What a caller may ask for."""

    max_image_bytes: int = Field(30 * MIB, gt=0, description="A file; it must fit a message with its masks.")
    max_image_pixels: int = Field(
        50_000_000,
        gt=0,
        description="Width times height of an image. Segmenter and embedder have the same limit: raise all "
        "three together.",
    )
    max_decoded_bytes: int = Field(
        512 * MIB,
        gt=0,
        description="Memory for images that are decoded at once, for thumbnails, crops and renderings, in "
        "bytes; others wait. An image that needs more is decoded alone.",
    )
    max_request_bytes: int = Field(512 * MIB, gt=0, description="The body of an HTTP request.")
    max_upload_bytes: int = Field(
        1024 * MIB, gt=0, description="Bodies of requests that add images, all of them at once; on disk."
    )
    max_body_bytes: int = Field(
        256 * MIB, gt=0, description="Bodies of all other requests at once; in memory."
    )
    max_files: int = Field(64, gt=0, description="Files of one request.")
    max_texts: int = Field(64, gt=0, description="Phrases of one query, negatives counted apart.")
    max_page_size: int = Field(1000, gt=0, description="Of any list; who asks for more gets this many.")
    max_tags: int = Field(50, ge=0, description="Tags that one request may give an image.")
    max_attributes: int = Field(50, ge=0, description="Attributes that one request may give an image.")
    max_text_bytes: int = Field(4096, gt=0, le=4096, description="Bytes of one tag or attribute, in UTF-8.")
    max_metadata_bytes: int = Field(
        16 << 10,
        ge=0,
        description="Bytes of all tags and attributes that one request may give an image. What an image may "
        "have in all are limits of the searcher, a little higher.",
    )
    max_images_in_work: int = Field(16, gt=0, description="Images that are ingested at once.")
    max_images_waiting: int = Field(512, ge=0, description="Images that may wait; more are refused with 429.")
    requests_per_s: float | None = Field(None, gt=0, description="Per key, or per address without keys.")
    anonymous_requests_per_s: float = Field(
        200.0,
        ge=0,
        description="Per address where there are no keys, and requests_per_s is not set; ten seconds' worth "
        "may come at once. 0 turns it off.",
    )
    requests_burst: int = Field(50, gt=0, description="Requests that may come at once within that rate.")

    @property
    def image(self) -> ImageLimits:
        """Limits of one image."""
        return ImageLimits(self.max_image_bytes, self.max_image_pixels, "gateway")

    @property
    def metadata(self) -> MetadataLimits:
        """How much one request may say about an image."""
        return MetadataLimits(
            self.max_tags, self.max_attributes, self.max_text_bytes, self.max_metadata_bytes
        )


class ConnectionSettings(_Part):
    """What one HTTP connection may cost."""

    max_connections: int = Field(
        1000,
        gt=0,
        description="Open at once, and at most half of the file descriptors that the process may have. "
        "Beyond them the one idle longest is closed; where none is idle, only health checks are answered.",
    )
    headers_s: float = Field(
        10.0, gt=0, description="Longest time for the headers of a request, and for a TLS handshake, seconds."
    )
    idle_s: int = Field(30, gt=0, description="Between two requests on one connection, seconds.")
    stall_s: float = Field(
        20.0, gt=0, description="How long a body or a reader may be slower than min_bytes_per_s, seconds."
    )
    max_unsent_bytes: int = Field(
        256 * MIB,
        gt=0,
        description="Answers that wait in memory for their readers, all of them; beyond it those who have "
        "been reading for longest are closed.",
    )
    min_bytes_per_s: int = Field(
        4096, ge=0, description="Slowest pace of a body that is sent, and of an answer that is read."
    )


class TimeoutSettings(_Part):
    """Longest times of one request, seconds; a caller's own nearer deadline wins."""

    ingest_s: float = Field(300.0, gt=0, description="One image on its way in.")
    query_s: float = Field(60.0, gt=0, description="Everything else.")
    probe_s: float = Field(1.0, gt=0, description="Each question of a look at readiness.")
    restart_s: float = Field(
        30.0, ge=0, description="Waiting for a service while none of its replicas serves, as in a restart."
    )


class SweepSettings(_Part):
    """Deleting images that an ingest has left which died; see `gateway.sweep`."""

    every_s: float | None = Field(None, gt=0, description="Seconds between two sweeps; none when absent.")
    older_than_s: float = Field(
        86_400.0, ge=0, description="Images that were put within this time are left: longer than an ingest."
    )


class BackendTlsSettings(_Part):
    """How the gateway reaches the services over TLS: PEM files."""

    enabled: bool = False
    ca: Path | None = Field(None, description="Whom to trust; the system's authorities when absent.")
    certificate: Path | None = Field(None, description="Who the gateway is, for mutual TLS.")
    key: Path | None = None

    def files(self) -> TlsFiles | None:
        """For the channels; None speaks plain text."""
        return TlsFiles(self.ca, self.certificate, self.key) if self.enabled else None


class GatewaySettings(ServiceSettings):
    """The gateway process.

    An API key that begins with ``read:`` may look and search, one that begins with ``write:`` may also add
    and delete images; every other key may do everything. The prefix is part of the key.
    """

    process: ClassVar[str] = "gateway"
    named_callers: ClassVar[bool] = False

    port: int = Field(50050, ge=0, le=65535, description="gRPC port; 0 takes a free one.")
    http_host: str | None = Field(None, description="Address of the HTTP server; that of gRPC when absent.")
    http_port: int = Field(8000, ge=0, le=65535, description="HTTP port; 0 takes a free one.")
    http_port_file: Path | None = Field(None, description="Written with the HTTP port once it listens.")
    segmenter: str = Field("127.0.0.1:50051", description="host:port, a list of them, or dns:///name:port.")
    embedder: str = Field("127.0.0.1:50052", description="host:port, a list of them, or dns:///name:port.")
    searcher: str = Field("127.0.0.1:50053", description="host:port, a list of them, or dns:///name:port.")
    backend_tls: BackendTlsSettings = BackendTlsSettings()
    backend_api_key: SecretStr | None = Field(None, description="Sent to the services.")
    image_store: str = Field(
        "data/images", description="Folder, or any URL of fsspec such as s3://bucket/path, for the images."
    )
    thumbnail_cache_bytes: int = Field(64 * MIB, ge=0, description="Thumbnails that are kept in memory.")
    crop_policy: CropPolicyName = Field(
        "default", description="Of new collections; default is the embedder's."
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
        None, ge=0, description="A whole image goes before its own region that is better by less than this."
    )
    limits: LimitSettings = LimitSettings()
    connections: ConnectionSettings = ConnectionSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    sweep: SweepSettings = SweepSettings()
    strip_metadata: bool = Field(
        False,
        description="Serve images without EXIF, XMP, IPTC and comments, so without positions: JPEG, PNG and "
        "WebP with the same pixels, GIF, TIFF, HEIC and AVIF as WebP of at most 4,096 pixels. What is stored "
        "stays as it was sent.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Web pages of other origins that may call the API; * for all. Separated by commas."
    )

    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Names under which the gateway is reached, as search.example.org or *.example.org; * for "
        "any. IP addresses, names without a dot and the host settings are always allowed; with API keys "
        "any name is, unless some are given here. Separated by commas.",
    )

    trusted_proxies: Annotated[tuple[IPvAnyNetwork, ...], NoDecode] = Field(
        (),
        description="Addresses or networks (10.0.0.0/8) of proxies that are believed when they say, in "
        "X-Forwarded-For, for whom they speak. Separated by commas.",
    )

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
