"""milvus-lite as a server, with its exact index: over gRPC, as our searcher is."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from driver import HITS, serve  # type: ignore[import-not-found]  # next to this program
from pymilvus import DataType, MilvusClient

BATCH = 5000


def main(folder: Path) -> None:
    """Starts the server, loads the data and serves."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    program = Path(sys.executable).with_name("milvus-lite")
    command = [str(program), "server", "--data-dir", str(folder / "milvus"), "--host", "127.0.0.1"]
    server = subprocess.Popen([*command, "--port", str(port)], stdout=sys.stderr, stderr=sys.stderr)
    try:
        _await(port)
        client = MilvusClient(uri=f"http://127.0.0.1:{port}", timeout=600)
        _fill(client, np.load(folder / "vectors.npy"), np.load(folder / "tenth.npy"))

        def search(query: np.ndarray, filtered: bool) -> list[int]:
            (found,) = client.search(
                "vectors", data=[query.tolist()], limit=HITS, filter="tenth == true" if filtered else "",
                search_params={"metric_type": "IP"}, consistency_level="Strong",
            )  # fmt: skip
            return [int(hit["id"]) for hit in found]

        serve(search, folder)
    finally:
        server.terminate()
        server.wait()


def _await(port: int) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit("milvus-lite does not listen")


def _fill(client: MilvusClient, vectors: np.ndarray, tenth: np.ndarray) -> None:
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("tenth", DataType.BOOL)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
    index = client.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="IP")
    client.create_collection("vectors", schema=schema, index_params=index, consistency_level="Strong")
    for start in range(0, len(vectors), BATCH):
        rows = [
            {"id": start + row, "tenth": bool(tenth[start + row]), "vector": vector}
            for row, vector in enumerate(vectors[start : start + BATCH])
        ]
        client.insert("vectors", rows)
    client.flush("vectors")
    client.load_collection("vectors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
