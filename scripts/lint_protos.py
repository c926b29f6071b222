"""Lints the contract with buf's STANDARD rules; needs `buf` (the npm package @bufbuild/buf) on the PATH.

buf resolves dependencies over the network; the one we have (google/rpc/status.proto) is taken from the
installed googleapis-common-protos instead.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import google.rpc

ROOT = Path(__file__).resolve().parent.parent
WORKSPACE = """version: v2
modules:
  - path: protos
  - path: googleapis
lint:
  use: [STANDARD]
  ignore: [googleapis]
"""


def lint() -> int:
    """Runs `buf lint` over protos/ and returns its exit code; findings go to standard output."""
    buf = shutil.which("buf")
    if buf is None:
        sys.exit("buf is not on the PATH; install it with: npm install -g @bufbuild/buf")
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        shutil.copytree(ROOT / "protos", workspace / "protos")
        (workspace / "protos" / "buf.yaml").unlink()
        (workspace / "buf.yaml").write_text(WORKSPACE)
        status = workspace / "googleapis" / "google" / "rpc" / "status.proto"
        status.parent.mkdir(parents=True)
        shutil.copy(Path(google.rpc.__path__[0]) / "status.proto", status)
        return subprocess.run([buf, "lint"], cwd=workspace, check=False).returncode


if __name__ == "__main__":
    sys.exit(lint())
