"""A channel to all replicas of a service, which gives each call to the replica with the fewest in progress.

gRPC offers round robin, and weights that follow what servers report; it has no policy for calls that are few
and long, as those of models are. Round robin gives a slow replica as many calls as the others, and all
callers wait there; reports are late by the length of a call, so that weights overshoot and devices idle.

Each replica has a gRPC channel of its own, for its connection, its health checks and its message caps.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import grpc

from regionsearch.rpc.channels import SCHEMES, ChannelConfig, open_aio_channel, split_address

RESOLVE_S = 5.0  # between two look-ups of a service's name
FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 0.8  # between attempts; each is twice as long as the one before
# What `channels.py` has gRPC retry, and for the same reasons.
RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)

_TARGETS = {socket.AF_INET: "ipv4:{}:{}", socket.AF_INET6: "ipv6:[{}]:{}"}


class Loaded(Protocol):
    """What a choice between replicas looks at."""

    in_progress: int

    @property
    def ready(self) -> bool:
        """Whether it can be reached and serves."""


ReplicaT = TypeVar("ReplicaT", bound=Loaded)


def least_loaded(replicas: Sequence[ReplicaT]) -> ReplicaT:
    """The ready replica with the fewest calls in progress, a random one of several; if none is ready, any."""
    ready = [one for one in replicas if one.ready] or replicas
    fewest = min(one.in_progress for one in ready)
    return random.choice([one for one in ready if one.in_progress == fewest])


@dataclass(eq=False)
class _Replica:
    channel: grpc.aio.Channel
    in_progress: int = 0
    methods: dict[str, Callable[..., Any]] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return self.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY


class ReplicaChannel(grpc.aio.Channel):
    """For unary calls; see the module. Make it on the event loop that uses it.

    Args:
        addresses: ``host:port`` of each replica, or one name that stands for all of them: it is looked up
            every `RESOLVE_S` seconds and whenever a replica cannot be reached.
        config: As for any channel.
        interceptors: For every call.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        config: ChannelConfig,
        interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    ) -> None:
        self._config = replace(config, retries=False)
        self._interceptors = interceptors
        self._name = addresses[0] if len(addresses) == 1 else None
        self._replicas: dict[str, _Replica] = {}
        self._leaving: list[_Replica] = []  # whose calls in progress are waited for
        self._looked_up = float("-inf")
        self._looking_up: asyncio.Task[None] | None = None
        if self._name is None:
            self._replicas = {address: self._open(f"dns:///{address}") for address in addresses}

    def unary_unary(self, method: str, *codec: Any, **options: Any) -> Any:
        """The method as a coroutine function; see :class:`grpc.aio.UnaryUnaryMultiCallable`."""

        async def call(request: Any, *, timeout: float | None = None, **details: Any) -> Any:  # noqa: ASYNC109
            deadline = None if timeout is None else time.monotonic() + timeout
            pause = FIRST_PAUSE_S
            known_for_s = RESOLVE_S
            while True:
                replica = least_loaded(await self._current(known_for_s))
                if method not in replica.methods:
                    replica.methods[method] = replica.channel.unary_unary(method, *codec, **options)
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                replica.in_progress += 1
                try:
                    return await replica.methods[method](request, timeout=left, **details)
                except grpc.aio.AioRpcError as error:
                    wait = random.uniform(0.5, 1.5) * pause
                    late = deadline is not None and time.monotonic() + wait >= deadline
                    if error.code() not in RETRIED or pause > LAST_PAUSE_S or late:
                        raise
                finally:
                    replica.in_progress -= 1
                await asyncio.sleep(wait)
                pause *= 2
                known_for_s = FIRST_PAUSE_S  # it may have moved

        return call

    def _open(self, target: str, authority: str | None = None) -> _Replica:
        config = replace(self._config, authority=authority)
        return _Replica(open_aio_channel(target, config, self._interceptors))

    async def _current(self, most_age_s: float) -> Sequence[_Replica]:
        """The replicas; starts a look-up if the last one is older, and waits only for the first."""
        idle = self._looking_up is None or self._looking_up.done()
        if self._name is not None and idle and time.monotonic() - self._looked_up > most_age_s:
            self._looking_up = asyncio.create_task(self._look_up(self._name))
        if not self._replicas and self._looking_up is not None:
            await asyncio.wait({self._looking_up})
        return list(self._replicas.values())

    async def _look_up(self, name: str) -> None:
        """Replaces the replicas by those that the name stands for now."""
        host, port = split_address(name)
        found: set[str] = set()
        with contextlib.suppress(OSError):  # those that are known may still be there
            answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found = {_TARGETS[kind].format(*where) for kind, _, _, _, where in answers if kind in _TARGETS}
        self._looked_up = time.monotonic()
        if not found:
            found = set(self._replicas) or {f"dns:///{name}"}  # whose calls tell what is wrong
        for target in found - self._replicas.keys():
            self._replicas[target] = self._open(target, name)
        self._leaving += [self._replicas.pop(target) for target in self._replicas.keys() - found]
        for one in [one for one in self._leaving if not one.in_progress]:
            self._leaving.remove(one)
            await one.channel.close(None)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """READY if some replica is."""
        states = grpc.ChannelConnectivity
        return states.READY if any(one.ready for one in self._replicas.values()) else states.IDLE

    async def close(self, grace: float | None = None) -> None:
        """Closes the channels of all replicas."""
        if self._looking_up is not None:
            self._looking_up.cancel()
        every = [*self._replicas.values(), *self._leaving]
        await asyncio.gather(*(one.channel.close(grace) for one in every))

    async def __aenter__(self) -> ReplicaChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def unary_stream(self, *_: Any, **__: Any) -> Any:
        """Not offered; generated stubs ask for every method of their service."""

    stream_unary = stream_stream = unary_stream

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Not offered."""
        raise NotImplementedError

    async def channel_ready(self) -> None:
        """Not offered."""
        raise NotImplementedError


def open_replicas(
    target: str, config: ChannelConfig, interceptors: Sequence[grpc.aio.ClientInterceptor] = ()
) -> grpc.aio.Channel:
    """A channel for unary calls to the replicas of a service.

    Args:
        target: See :func:`regionsearch.rpc.channels.resolve_target`; gRPC targets other than ``dns:///name``
            are left to gRPC, which goes round robin.
        config: As for any channel.
        interceptors: For every call.

    Raises:
        ValueError: `target` cannot be understood.
    """
    bare = target.removeprefix("dns:///")
    if bare.startswith(SCHEMES):
        return open_aio_channel(target, config, interceptors)
    addresses = [address.strip() for address in bare.split(",")]
    for address in addresses:
        split_address(address)
    return ReplicaChannel(addresses, config, interceptors)
