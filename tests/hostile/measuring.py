"""What an attack costs: how long others wait for their answers, and the peak memory of a process."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import psutil

MIB = 1 << 20
SLOWEST_HEALTH_S = 5.0  # of CPU time; such bodies once took it for 13 s and more
SPARE_BYTES = 24 * MIB  # what a process takes for itself while it works on anything


class HealthProbe:
    """Asks a process for its health again and again.

    Attributes:
        slowest_s: The most CPU time that the process spent before it gave an answer. What else keeps the
            machine busy does not count.
    """

    def __init__(self, url: str, pid: int) -> None:
        self._url = url
        self._process = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.slowest_s = 0.0

    def _cpu_s(self) -> float:
        used = self._process.cpu_times()
        return float(used.user + used.system)

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as http:
            while not self._stop.wait(0.01):
                begin = self._cpu_s()
                assert http.get("/healthz").status_code == 200
                self.slowest_s = max(self.slowest_s, self._cpu_s() - begin)

    def __enter__(self) -> HealthProbe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def forget_peak(pid: int) -> int:
    """Begins to measure the peak anew; returns the memory in use now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak_bytes(pid)
