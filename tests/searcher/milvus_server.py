"""The Milvus that tests use: the one that an environment variable names, or a milvus-lite of their own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.searcher.engine import Engine
from services.searcher.settings import MilvusSettings
from tests.stack import free_port

PREFIX = f"t{time.time_ns()}_"
BUILT = Path(__file__).resolve().parents[2] / "build" / "milvus-lite" / "bin" / "milvus-lite"


@contextlib.contextmanager
def running(folder: Path) -> Iterator[str]:
    """Address of the Milvus that REGIONSEARCH_MILVUS_URI names, or else of a milvus-lite that runs in its own
    environment.
    """
    pytest.importorskip("pymilvus", reason="the milvus engine needs pymilvus")
    if address := os.environ.get("REGIONSEARCH_MILVUS_URI"):
        yield address
        return
    program = os.environ.get("REGIONSEARCH_MILVUS_LITE", str(BUILT))
    if not Path(program).exists():
        pytest.skip("no milvus-lite: run tests/searcher/milvus_environment.sh")
    port = free_port()
    with (folder / "log").open("wb") as log:
        command = [program, "server", "--data-dir", str(folder / "data"), "--host", "127.0.0.1"]
        server = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def open_milvus(address: str, **options: object) -> Engine:
    from services.searcher.milvus.engine import MilvusEngine

    options = {"index_type": "FLAT", "prefix": PREFIX, "timeout_s": 60.0} | options
    return MilvusEngine(MilvusSettings(uri=address, **options))
