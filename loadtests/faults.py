"""What can happen to a fleet: each a function that begins it and returns when it is over."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil

from loadtests.deployments import Processes
from loadtests.launch import Process
from loadtests.links import Link

FAULT_S = 15.0  # that a fault lasts, but for a killed process
GONE_S = 2.0  # of a killed process, before it is started again
DELAY_S = 0.2  # of a slow network, for every 64 KiB in each direction
Fault = Callable[[], None]


class Fleet(Processes):
    """A fleet whose gateways reach the services over links that can be slow, and whose members can be killed.

    Args:
        folder: For data, images and logs.
    """

    def __init__(self, folder: Path) -> None:
        self.links: dict[str, list[Link]] = {}
        super().__init__(folder)

    def _plan(self, member: str) -> Process:
        plan = super()._plan(member)
        if plan.role == "gateway":
            if not self.links:
                for role, addresses in self.services.items():
                    self.links[role] = [Link(address) for address in addresses.split(",")]
            over = {role: ",".join(link.address for link in links) for role, links in self.links.items()}
            plan.settings = {**plan.settings, **over}
        return plan

    def pid(self, member: str) -> int | None:
        """Of the process that runs now; None while none does."""
        process = self._running[member].process
        return process.pid if process and process.poll() is None else None

    def kill(self, member: str) -> None:
        """Ends it without a warning; `start` brings it back."""
        process = self._running[member].process
        assert process is not None
        process.kill()
        process.wait()
        self._running[member].process = None


def killed(fleet: Fleet, member: str) -> None:
    """It is gone for two seconds, and then until it serves again."""
    fleet.kill(member)
    time.sleep(GONE_S)
    fleet.start(member)


def paused(fleet: Fleet, member: str) -> None:
    """It does not move, and its connections stay: SIGSTOP."""
    process = psutil.Process(fleet.pid(member))
    process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(FAULT_S)
    finally:
        process.send_signal(signal.SIGCONT)


def slow(fleet: Fleet, role: str) -> None:
    """Every 64 KiB take longer, in both directions."""
    for link in fleet.links[role]:
        link.delay_s = DELAY_S
    try:
        time.sleep(FAULT_S)
    finally:
        for link in fleet.links[role]:
            link.delay_s = 0.0


def cut(fleet: Fleet, role: str) -> None:
    """The connections break, and new ones are refused at once."""
    for link in fleet.links[role]:
        link.cut()
    try:
        time.sleep(FAULT_S)
    finally:
        for link in fleet.links[role]:
            link.mend()


def full(disk: Path) -> None:
    """Not a byte is left."""
    other = disk / "other"
    try:
        with other.open("ab", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass
        time.sleep(FAULT_S)
    finally:
        other.unlink()


def all_faults(fleet: Fleet, disk: Path | None) -> dict[str, Fault]:
    """Every fault that there is, by name; that of the disk only where there is one to fill.

    The first of each pair is never killed: it shows what the failures of the others leave behind.
    """
    faults: dict[str, Fault] = {}
    for member in fleet.members:
        if not member.endswith("-1") or member == "searcher-1":
            faults[f"kill {member}"] = partial(killed, fleet, member)
        faults[f"pause {member}"] = partial(paused, fleet, member)
    for role in fleet.links:
        faults[f"slow network to {role}"] = partial(slow, fleet, role)
        faults[f"no network to {role}"] = partial(cut, fleet, role)
    if disk is not None:
        faults["full disk"] = partial(full, disk)
    return faults
