"""Milvus as a server: etcd, storage and nodes in one process, over gRPC."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pymilvus import DataType, MilvusClient

from benchmarks.compare import driver


class Peer(driver.Peer):
    """A graph with M 16 and efConstruction 200; the newest server that PyPI has."""

    package = "milvus"
    efforts: Sequence[int] = (64, 128, 256, 512)
    index = {"index_type": "HNSW", "params": {"M": 16, "efConstruction": 200}}  # noqa: RUF012

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.version = version(self.package)
        self.ports = driver.free_ports(10)
        self._server = subprocess.Popen(self.command(folder), stdout=sys.stderr, stderr=sys.stderr)
        self._client = self._connected()
        if self._client.has_collection("rows"):
            self._client.load_collection("rows")
        else:
            self._create()

    def command(self, folder: Path) -> list[str]:
        """What starts the server."""
        program = Path(sys.executable).with_name("milvus-server")
        names = ("etcd", "root-coord", "proxy-internal", "query-coord", "query-node", "index-coord",
                 "index-node", "data-coord", "data-node")  # fmt: skip
        ports = [f"--{name}-port={port}" for name, port in zip(names, self.ports[1:], strict=True)]
        return [str(program), "--data", str(folder), f"--proxy-port={self.ports[0]}", *ports]

    def add(self, first: int, items: Any) -> None:
        rows = [
            {"id": first + row, "part": int(part), "vector": vector}
            for row, (vector, part) in enumerate(zip(*items, strict=True))
        ]
        self._client.insert("rows", rows)

    def finish(self) -> None:
        self._client.flush("rows")
        self._client.release_collection("rows")
        self._client.drop_index("rows", "vector")  # and again over whole segments
        self._client.create_index("rows", self._index())
        self._client.load_collection("rows")

    def ask(self, query: Any, below: int | None = None) -> list[int]:
        (found,) = self._client.search(
            "rows", data=[query.tolist()], limit=10, filter="" if below is None else f"part < {below}",
            search_params={"metric_type": "IP", "params": {"ef": self.effort}}, consistency_level="Session",
        )  # fmt: skip
        return [int(hit["id"]) for hit in found]

    def count(self) -> int:
        found = self._client.query("rows", filter="", output_fields=["count(*)"], consistency_level="Strong")
        return int(found[0]["count(*)"])

    def stop(self) -> None:
        self._client.close()
        self._server.terminate()
        self._server.wait(30)

    def _create(self) -> None:
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("part", DataType.INT64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=512)
        self._client.create_collection("rows", schema=schema, index_params=self._index())

    def _index(self) -> Any:
        index = MilvusClient.prepare_index_params()
        index.add_index("vector", index_name="vector", metric_type="IP", **self.index)
        return index

    def _connected(self) -> MilvusClient:
        for _ in range(240):
            if self._server.poll() is not None:
                raise SystemExit(f"the server ended with code {self._server.returncode}")
            try:
                client = MilvusClient(uri=f"http://127.0.0.1:{self.ports[0]}", timeout=600)
                client.list_collections(timeout=5)
            except Exception:
                time.sleep(0.5)
            else:
                return client
        raise SystemExit("the server does not answer within two minutes")
