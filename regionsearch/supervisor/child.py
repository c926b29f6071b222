"""One process of `regionsearch up`: its settings, its log, and what ends it with the others."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

MODULES = {
    "segmenter": "services.segmenter",
    "embedder": "services.embedder",
    "searcher": "services.searcher",
    "gateway": "gateway",
}
LARGE_LOG = 16 << 20  # bytes; at the next start it becomes the old log
_TAIL = 1 << 16  # bytes of a log's end

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_NOISE = re.compile(r"[IW]\d{4,} |\s|$")  # gRPC's own lines, and the inside of a traceback


class Lifeline:
    """Ends a service once it is no longer needed: when the supervisor and the gateway are both gone.

    A pipe that carries no data. The kernel sends SIGTERM to the process at its reading end when the last
    writing end is closed; supervisor and gateway hold one each. So if the supervisor is killed, the gateway
    first finishes its work while the services are still there.

    Attributes:
        reader: The end that the service holds.
        writer: The end that the gateway holds.

    Raises:
        AttributeError: On systems without such signals.
    """

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.reader, fcntl.F_SETSIG, signal.SIGTERM)
        fcntl.fcntl(self.reader, fcntl.F_SETFL, fcntl.fcntl(self.reader, fcntl.F_GETFL) | os.O_ASYNC)

    def tie(self) -> None:
        """Ties the calling process to it: called in the child, before it becomes the service."""
        fcntl.fcntl(self.reader, fcntl.F_SETOWN, os.getpid())


@dataclass
class Child:
    """One process and its history; the replicas of a service share its role.

    Attributes:
        name: Name of the process and its log.
        role: Which of `MODULES` it is.
        settings: Settings by name; they go into its environment.
        log: Its log file; if it cannot be written, the process runs without one.
        inherits: File descriptors that it holds as long as it runs.
        end_with: Called in the child; ties its end to that of others. By default it ends with its parent.
    """

    name: str
    role: str
    settings: Mapping[str, str]
    log: Path
    inherits: Sequence[int] = ()
    end_with: Callable[[], None] = field(default=lambda: _die_with_parent())
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_again_at: float = 0.0
    quick_deaths: int = 0

    def start(self) -> None:
        """Starts the process."""
        # The C core of gRPC would write lines of another form into the log; Python raises its errors anyway.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", "GRPC_VERBOSITY": "NONE"} | os.environ
        for key, value in self.settings.items():
            environment[f"REGIONSEARCH_{self.role.upper()}_{key.upper()}"] = value
        with contextlib.suppress(OSError):
            if "port_file" in self.settings:
                Path(self.settings["port_file"]).unlink(missing_ok=True)  # of the process before this one
            if self.log.exists() and self.log.stat().st_size > LARGE_LOG:
                self.log.replace(self.log.with_suffix(".log.1"))
        self.started_at = time.monotonic()
        with contextlib.ExitStack() as opened:
            log: int | IO[bytes] = subprocess.DEVNULL
            with contextlib.suppress(OSError):  # a full disk must not keep it from serving
                log = opened.enter_context(self.log.open("ab"))
            # In a session of its own: Ctrl-C goes to the supervisor alone, which stops the children in order.
            self.process = subprocess.Popen(
                [sys.executable, "-m", MODULES[self.role]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                pass_fds=self.inherits,
                preexec_fn=self.end_with,
            )

    def last_words(self) -> str:
        """What the end of its log complains of; its last line where it complains of nothing."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        lines = [line for line in lines if line.strip()]
        return next(filter(None, map(_complaint, reversed(lines))), lines[-1] if lines else "")


def _complaint(line: str) -> str:
    """What a line of a log complains of; empty for one that does not."""
    try:
        event = json.loads(line)
    except ValueError:
        return "" if _NOISE.match(line) else line
    if not isinstance(event, dict) or event.get("level") not in ("error", "critical"):
        return ""
    exception = str(event.get("exception", "")).strip().splitlines()
    details = [event.get("error"), event.get("reason"), exception[-1] if exception else None]
    return ": ".join(str(one) for one in (event.get("event"), *details) if one)


def _die_with_parent() -> None:
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
