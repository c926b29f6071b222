"""milvus-lite as a server, with its exact index, over gRPC."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks.compare.peers import milvus


class Peer(milvus.Peer):
    """The same client as of the whole Milvus."""

    package = "milvus-lite"
    efforts = (0,)
    index = {"index_type": "FLAT", "params": {}}  # noqa: RUF012

    def command(self, folder: Path) -> list[str]:
        program = Path(sys.executable).with_name("milvus-lite")
        address = ["--host", "127.0.0.1", "--port", str(self.ports[0])]
        return [str(program), "server", "--data-dir", str(folder), *address]

    def finish(self) -> None:
        self._client.flush("rows")
        time.sleep(5)  # it writes its index after that; stopped in the middle, it cannot load it again
