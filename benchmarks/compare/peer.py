"""Our end of a peer: its process in its own environment, asked for measurements."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from benchmarks.compare.environments import python_of
from benchmarks.harness import SkipCase
from loadtests.launch import ROOT

PATIENCE_S = 1200.0  # for one answer
STOP_S = 60.0
MIB = 2**20
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Known:
    """A peer of one part.

    Attributes:
        module: Its file in `benchmarks.compare.peers`.
        environment: Name of its environment; empty for ours.
        note: What it is, and what it wins or loses by.
        skipped: Why it does not run, if that is known beforehand.
    """

    module: str
    environment: str
    note: str
    skipped: str = ""

    def start(self, folder: Path, inputs: Path, data: Path, **variables: str) -> RunningPeer:
        """Starts it over its data; the arguments are `RunningPeer`'s, environments are next to `folder`."""
        module = f"benchmarks.compare.peers.{self.module}"
        return RunningPeer(module, self.environment, data, inputs, folder.parent, variables)


class RunningPeer:
    """A peer that has started; as a context manager it is stopped at the end.

    Args:
        module: Name of the one that has its class `Peer`.
        environment: Name of its environment; empty for ours.
        folder: For its data, kept when it stops.
        inputs: The folder of `driver.Inputs`.
        environments: Where environments are.
        variables: Added to its process's environment.

    Attributes:
        version: Of its package.
        efforts, filters: As `driver.Peer` says.

    Raises:
        SkipCase: It cannot be installed or started.
    """

    def __init__(
        self,
        module: str,
        environment: str,
        folder: Path,
        inputs: Path,
        environments: Path,
        variables: Mapping[str, str] = NOTHING,
    ) -> None:
        python = python_of(environment, environments)
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder.with_suffix(".log")
        command = [str(python), "-m", "benchmarks.compare.driver", module]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, str(folder), str(inputs)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", **variables},
            )  # fmt: skip
        try:
            ready = self._read()
        except BaseException:
            self.kill()
            raise
        self.version, self.efforts, self.filters = ready["version"], ready["efforts"], ready["filters"]

    def __enter__(self) -> RunningPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """What the driver's command answers.

        Raises:
            SkipCase: It ended instead.
        """
        self.send(do, **fields)
        return self.answer()

    def send(self, do: str, **fields: Any) -> None:
        """Asks without waiting for the answer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # reading says why
            self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The answer to what was sent."""
        while "added" in (answer := self._read()):
            pass
        return answer

    def killed_while_adding(self, after: int) -> int:
        """Kills it and its servers without warning, once so many items are acknowledged.

        Returns:
            How many were acknowledged in the end.
        """
        added: int = 0
        while added < after:
            added = int(self._read().get("added", after))
        self.kill()
        assert self._process.stdout is not None
        rest: list[dict[str, int]] = [
            json.loads(line) for line in self._process.stdout if line.startswith("{") and line[-1] == "\n"
        ]
        return max([added, *(message.get("added", 0) for message in rest)])

    def memory_mib(self) -> float:
        """Memory of all its processes, shared pages divided among those that share them."""
        found = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                found += process.memory_full_info().pss / MIB
        return found

    def stop(self) -> None:
        """Ends it in order."""
        tree = self._tree()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        _end(tree)

    def kill(self) -> None:
        """Ends it with SIGKILL, servers first: what they have not done is not acknowledged."""
        _end(self._tree())
        self._process.wait()

    def _tree(self) -> list[psutil.Process]:
        """Its processes, servers first; also those of a driver that has ended without them."""
        session = [process for process in psutil.process_iter() if self._owns(process.pid)]
        children = [child for process in session for child in process.children(recursive=True)]
        return list(dict.fromkeys([*reversed(children), *reversed(session)]))

    def _owns(self, pid: int) -> bool:
        try:
            return os.getsid(pid) == self._process.pid
        except ProcessLookupError:
            return False

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        patience = threading.Timer(PATIENCE_S, self.kill)
        patience.start()
        try:
            for line in self._process.stdout:
                if line.startswith("{"):  # libraries print too
                    answer: dict[str, Any] = json.loads(line)
                    return answer
        finally:
            patience.cancel()
        lines = self._log.read_text(errors="replace").strip().splitlines()
        raise SkipCase(
            f"it ended with code {self._process.wait()}: {lines[-1] if lines else 'nothing logged'}"
        )


def _end(tree: list[psutil.Process]) -> None:
    for process in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(tree, timeout=STOP_S)


def disk_mib(folder: Path) -> float:
    """What the files of a folder take."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file()) / MIB


def empty(folder: Path) -> Path:
    """The folder, without anything in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
