"""Settings of the searcher, `REGIONSEARCH_SEARCHER_…`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, SecretStr

from services.runtime.settings import MIB, ClientTlsSettings, ServiceSettings, SettingsPart


class EmbeddedSettings(SettingsPart):
    """The embedded engine."""

    folder: Path = Field(Path("data/searcher"), description="Where records and snapshots are kept.")
    read_only: bool = Field(False, description="Refuse writes; for a folder that cannot be written.")
    check_at_start: bool = Field(
        True, description="Read the whole record file once and refuse a damaged one."
    )
    chunk_rows: int = Field(65_536, ge=1, description="Rows of an exactly searched segment.")
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto takes a GPU that FAISS can use.")
    ann_above: int = Field(
        1_000_000,
        ge=1,
        description="Number of records from which on a collection gets approximate indexes; with fewer it is "
        "searched exactly. If it is not set and a GPU is used, four million.",
    )
    ann_rows: int = Field(
        65_536,
        ge=1,
        description="New rows that make an approximate index, which is merged with older ones as they grow.",
    )
    max_unindexed_bytes: int = Field(
        4096 * MIB,
        ge=1,
        description="Memory of those rows of a collection that wait for an approximate index. Above it, "
        "writes are refused until one is built.",
    )
    recall_target: float = Field(
        0.98,
        gt=0,
        le=1,
        description="Minimum recall@10 of an approximate index, for words and for regions, on live queries "
        "once there are 64 different ones of a kind, until then on queries made from stored vectors. A "
        "collection may have its own.",
    )
    build_threads: int = Field(1, ge=1, description="Threads that build indexes in the background.")
    gpu_rows: int = Field(131_072, ge=1, description="Rows of an exact index on a GPU.")
    gpu_bytes: int = Field(
        8192 * MIB,
        ge=0,
        description="Memory of the GPU that indexes may take, in addition to the 1.5 GiB that FAISS works "
        "in. What does not fit is searched on the CPU.",
    )
    codes_rows: int = Field(65_536, ge=1, description="New rows that make an index with binary codes.")
    heads_folder: Path | None = Field(
        None, description="Learned heads of binary codes; heads/ in the folder."
    )
    snapshot_url: str = Field(
        "",
        description="Where snapshots are kept in place of the folder `snapshots`: any address that fsspec "
        "knows, such as s3://bucket/path with s3fs installed; its keys come from the environment.",
    )
    snapshot_every_s: float | None = Field(
        None,
        ge=60,
        description="Seconds between two snapshots that the searcher takes by itself; absent: none.",
    )
    snapshot_keep: int = Field(
        7, ge=1, description="How many of these snapshots are kept; those taken by a call stay."
    )
    compact_above: float = Field(
        0.2, gt=0, lt=1, description="Share of deleted rows that starts a compaction."
    )
    max_log_bytes: int = Field(
        1024 * MIB,
        ge=1,
        description="Size of the record file's log above which writes are refused. It stays far below, "
        "unless the record file cannot be written.",
    )
    reserve_bytes: int = Field(
        64 * MIB,
        ge=0,
        description="Disk space that only deletions may use: held by a file, and other writes leave as much "
        "again free. At most a tenth of the disk.",
    )
    page_ttl_s: float = Field(
        300.0, ge=0, description="Time for which the pages of one search show the same state, seconds."
    )
    passes: int = Field(
        2,
        ge=1,
        description="Concurrent passes over vectors; those of one collection run in turn. On a GPU: 1.",
    )
    search_threads: int = Field(0, ge=0, description="Threads that score vectors; 0 means one per processor.")
    max_batch: int = Field(64, ge=1, description="Query vectors in one pass.")


class MilvusSettings(SettingsPart):
    """The Milvus engine."""

    uri: str = Field("http://127.0.0.1:19530", description="Address of Milvus.")
    token: SecretStr | None = Field(None, description="user:password, or an API key.")
    prefix: str = Field(
        "regionsearch_", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Prefix of all names in Milvus."
    )
    index_type: str = Field("AUTOINDEX", description="Milvus' vector index, such as HNSW; FLAT is exact.")
    index_params: dict[str, int | float | str] = Field(
        {}, description='Parameters of new vector indexes: {"M": 32, "efConstruction": 360} of an HNSW.'
    )
    search_params: dict[str, int | float] = Field(
        {},
        description='Parameters of searches: {"ef": 200} of an HNSW, {"nprobe": 64} of an IVF, {"level": 3} '
        "of an AUTOINDEX in Zilliz Cloud. A search with an effort multiplies them.",
    )
    timeout_s: float = Field(
        30.0, gt=0, description="Time limit of one call to Milvus including retries, seconds."
    )
    batch_rows: int = Field(1000, ge=1, description="Rows of one call to Milvus.")
    max_candidates: int = Field(
        16_384, ge=1, description="Maximum number of rows that Milvus returns for one search."
    )


class LimitSettings(SettingsPart):
    """Limits of one call."""

    max_records: int = Field(4096, ge=1, description="Records of one upsert.")
    max_images: int = Field(1024, ge=1, description="Images of one upsert.")
    max_queries: int = Field(64, ge=1, description="Query vectors of one search.")
    max_negatives: int = Field(64, ge=0, description="Negative vectors of one search.")
    max_dimension: int = Field(8192, ge=1, description="Length of a collection's vectors.")
    max_page_size: int = Field(1000, ge=1, description="Hits, images or collections of one page.")
    max_filter_values: int = Field(10_000, ge=1, description="Ids and tags of one filter or deletion.")
    max_filter_attributes: int = Field(64, ge=1, description="Attributes of one filter.")
    max_text_bytes: int = Field(4096, ge=1, description="Bytes of a name, tag or attribute.")
    max_tags: int = Field(64, ge=0, description="Tags of one image.")
    max_attributes: int = Field(64, ge=0, description="Attributes of one image or record.")
    max_metadata_bytes: int = Field(
        20 << 10, ge=0, description="Bytes of all tags and attributes of one image or record together."
    )


class SearcherSettings(ServiceSettings):
    """The searcher process."""

    process: ClassVar[str] = "searcher"

    port: int = Field(50053, ge=0, le=65535, description="gRPC port; 0 takes a free one.")
    engine: Literal["embedded", "milvus"] = "embedded"
    follow: str = Field(
        "",
        description="host:port of the searcher whose read replica this one is: it copies that store to its "
        "own folder, follows its writes and refuses others. Without it, on that folder, it takes over.",
    )
    follow_api_key: SecretStr | None = Field(None, description="Sent to the searcher that is followed.")
    follow_tls: ClientTlsSettings = ClientTlsSettings()
    embedded: EmbeddedSettings = EmbeddedSettings()
    milvus: MilvusSettings = MilvusSettings()
    limits: LimitSettings = LimitSettings()
    read_threads: int = Field(
        64,
        ge=1,
        description="Threads of searches and look-ups; searches that are answered together have one.",
    )
    write_threads: int = Field(32, ge=1, description="Writes in progress at a time.")
    max_write_bytes: int = Field(
        512 * MIB,
        ge=1,
        description="Memory of upserts in progress and waiting: messages and their copies, 3.5 times the "
        "vectors. More are refused at once, but a single one may exceed it.",
    )
    max_read_bytes: int = Field(
        512 * MIB,
        ge=1,
        description="Bytes of the answers of searches and look-ups, until they are sent; their memory is up "
        "to three times as much. More are refused, but a single one may exceed it.",
    )
    max_waiting: int = Field(1024, ge=0, description="Reads, and writes, that may wait; more are refused.")
