"""The gateway and the services behind it."""

from __future__ import annotations

from typing import Any

from regionsearch.schemas.responses.values import Model, Response


class Models(Response):
    """The models that are served now."""

    segmenter: Model
    embedder: Model
    searcher: dict[str, Any]


class ServiceState(Response):
    """Whether a service answers, and if not, why."""

    ready: bool
    detail: str


class Ready(Response):
    """Whether the gateway can do its work, and what it waits for."""

    ready: bool
    services: dict[str, ServiceState]

    @property
    def reason(self) -> str:
        """What it waits for, in one line."""
        waiting = (f"{name}: {state.detail}" for name, state in self.services.items() if not state.ready)
        return "; ".join(waiting)
