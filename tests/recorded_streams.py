"""A stand-in for torch's CUDA streams, which records what is asked of them; everything runs at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch


@dataclass(frozen=True)
class RecordedEvent:
    name: str
    log: list[str]

    def synchronize(self) -> None:
        self.log.append(f"host waits for {self.name}")


class RecordedStreams:
    """Streams are known by number, in the order in which they were made; an event as ``stream.number``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self._made = 0
        self._current = threading.local()
        monkeypatch.setattr(torch.cuda, "Stream", self._make)
        monkeypatch.setattr(torch.cuda, "stream", self._running)
        monkeypatch.setattr(torch.cuda, "default_stream", lambda device: None)
        monkeypatch.setattr(
            torch.Tensor,
            "record_stream",
            lambda tensor, stream: self.log.append(f"{stream.number} uses a tensor"),
        )

    def note(self, what: str) -> None:
        """Records that something runs on the calling thread's stream."""
        self.log.append(f"{getattr(self._current, 'number', 'default')} runs {what}")

    def _make(self, device: torch.device) -> RecordedStream:
        self._made += 1
        return RecordedStream(self._made - 1, self.log)

    @contextmanager
    def _running(self, stream: RecordedStream) -> Iterator[None]:
        before = getattr(self._current, "number", "default")
        self._current.number = stream.number
        yield
        self._current.number = before


class RecordedStream:
    def __init__(self, number: int, log: list[str]) -> None:
        self.number = number
        self._log = log
        self._events = 0

    def wait_stream(self, stream: object) -> None:
        """At the beginning, for the default stream."""

    def record_event(self) -> RecordedEvent:
        self._events += 1
        event = RecordedEvent(f"{self.number}.{self._events}", self._log)
        self._log.append(f"{self.number} records {event.name}")
        return event

    def wait_event(self, event: RecordedEvent) -> None:
        self._log.append(f"{self.number} waits for {event.name}")

    def synchronize(self) -> None:
        self._log.append(f"host waits for {self.number}")
