"""What the gateway says about itself, from one truth: gRPC health, ``/readyz``, what load balancers ask."""

from __future__ import annotations

import asyncio
import time

import structlog

from gateway.core import Gateway
from gateway.service_clients import Readiness
from services.runtime.health import Health

_START_PERIOD_S = 0.25
_SAY_EVERY = 40  # looks between two lines in the log, at the start
_PERIOD_S = 1.0

_log = structlog.get_logger(__name__)


class GatewayHealth:
    """Follows the services behind a gateway.

    gRPC health is SERVING while calls have a chance: from the first time that all services were ready, until
    one has been away for longer than calls wait for it (``timeouts.restart_s``), and again once it is back.

    Args:
        gateway: Asked about its services.
        health: What gRPC clients are told.
    """

    def __init__(self, gateway: Gateway, health: Health) -> None:
        self._gateway = gateway
        self._health = health
        self._patience_s = gateway.settings.timeouts.restart_s
        self._said = ""  # the reason that was given when a service had been away for too long

    @property
    def own(self) -> Readiness:
        """Of the process alone, for load balancers: up, and not draining, whatever is behind it."""
        health = self._health
        up = health.serving or self._waiting
        return Readiness(up, "serving" if up else health.reason)

    @property
    def _waiting(self) -> bool:
        return bool(self._said) and self._health.reason == self._said

    async def services_ready(self) -> None:
        """Waits until all services have been ready at once."""
        looks = 0
        while missing := await self._missing():
            if looks % _SAY_EVERY == 0:
                _log.info("waiting", **missing)
            looks += 1
            await asyncio.sleep(_START_PERIOD_S)

    async def follow(self) -> None:
        """Keeps gRPC health true until it is cancelled."""
        away_since: float | None = None
        while True:
            await asyncio.sleep(_PERIOD_S)
            missing = await self._missing()
            now = time.monotonic()
            if not missing:
                away_since = None
                if self._waiting:  # and not draining, whose reason is another one
                    _log.info("serving again")
                    self._health.set_serving()
                continue
            away_since = now if away_since is None else away_since
            if self._health.serving and now - away_since >= self._patience_s:
                self._said = f"waiting for {', '.join(missing)}"
                _log.warning("not serving", **missing)
                self._health.set_not_serving(self._said)

    async def _missing(self) -> dict[str, str]:
        found = await self._gateway.readiness()
        return {name: state.detail for name, state in found.items() if not state.ready}
