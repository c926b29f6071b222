"""Generates the Python stubs of the contract; `make protos` runs it.

Usage: python scripts/generate_protos.py [OUT]

OUT defaults to the repository's root, so that the stubs land in regionsearch/v1. The drift test generates
into a temporary folder and compares.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def generate(out: Path) -> None:
    """Writes messages, services and their type stubs for every .proto under `out`/regionsearch/v1.

    Raises:
        RuntimeError: protoc refused the contract; its message is on standard error.
    """
    include = ROOT / "protos"
    protos = sorted(str(path) for path in (include / "regionsearch").rglob("*.proto"))
    plugins = Path(sys.executable).parent
    arguments = [
        "protoc",
        f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
        f"-I{include}",
        f"-I{files('grpc_tools') / '_proto'}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
        *protos,
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc failed; see its message above")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
