"""Read replicas over gRPC: a searcher feeds those that follow it, and may follow another one itself."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import grpc
import structlog

from regionsearch.errors import Kind, RegionSearchError, from_rpc_error
from regionsearch.rpc.calls import CallPolicy, remaining, seen_write
from regionsearch.rpc.channels import ChannelConfig, open_aio_channel
from regionsearch.v1 import search_pb2 as pb
from regionsearch.v1 import search_pb2_grpc
from services.searcher.bounded_executor import BoundedExecutor
from services.searcher.engine import BehindError, Engine, Feed
from services.searcher.metrics import REPLICA_LAG_SECONDS, REPLICA_LAG_WRITES, REPLICAS
from services.searcher.settings import SearcherSettings
from services.searcher.types import StorePosition

if TYPE_CHECKING:
    from services.searcher.embedded.replica import ReplicaEngine

_MOST_REPLICAS = 16
_HEARTBEAT_S = 1.0
_PART_BYTES = 1 << 20
_PATIENCE_S = 0.5  # of a read that waits for a write
_STALLED_S = 600.0  # a replica takes so long, at most, to load a snapshot or changes
_RETRY_S = (0.2, 5.0)
_log = structlog.get_logger(__name__)


class Replication:
    """Both sides of it in one searcher.

    Args:
        settings: Whom to follow.
        engine: Of this searcher; a `ReplicaEngine` where it follows another one.
        closing: Set when the process stops.
    """

    def __init__(self, settings: SearcherSettings, engine: Engine, closing: asyncio.Event) -> None:
        self._engine = engine
        self._closing = closing
        self._feeding = BoundedExecutor("read replicas", _MOST_REPLICAS, 0)
        self._follower: Follower | None = None
        if settings.follow:
            from services.searcher.embedded.replica import ReplicaEngine

            if not isinstance(engine, ReplicaEngine):
                raise RegionSearchError(
                    Kind.FAILED_PRECONDITION,
                    f"the {settings.engine} engine has no read replicas: unset follow",
                )
            self._follower = Follower(settings, engine)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follows, if it is to; entered once there is something to serve."""
        if self._follower is None:
            yield
            return
        following = asyncio.create_task(self._follower.run())
        try:
            await self._follower.filled()
            yield
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def see(self, context: Any) -> None:
        """Before a read on a replica: waits a moment for the last write that the caller knows of."""
        if self._follower is not None:
            await self._follower.reach(seen_write(context.invocation_metadata()), _PATIENCE_S)

    async def reach(self, behind: BehindError) -> None:
        """Waits a moment for a write.

        Raises:
            BehindError: It has not come.
        """
        left = remaining()
        patience_s = _PATIENCE_S if left is None else min(left / 2, _PATIENCE_S)
        if self._follower is None or not await self._follower.reach(behind.seq, patience_s):
            raise behind

    async def feed(self, request: pb.FollowRequest) -> AsyncGenerator[pb.FollowResponse, None]:
        """What a replica is sent, until this process stops.

        Raises:
            RegionSearchError: See `Engine.follow` and `Feed.following`; UNAVAILABLE at the end.
        """
        position = StorePosition(
            request.history, request.seq, request.image_row, request.record_row, request.schema_version
        )
        feed = await self._feeding.run(lambda: self._engine.follow(position))
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        REPLICAS.inc()
        try:
            while not self._closing.is_set():
                async for response in self._next(feed):
                    stalled = loop.call_later(_STALLED_S, task.cancel)
                    yield response
                    stalled.cancel()
        finally:
            REPLICAS.dec()
            # A thread may still be at work on it.
            loop.run_in_executor(None, feed.close)
        raise RegionSearchError(
            Kind.UNAVAILABLE, "the searcher is stopping: follow it again", retry_after_s=1.0
        )

    async def _next(self, feed: Feed) -> AsyncIterator[pb.FollowResponse]:
        """The parts of the next file; a message without one when nothing has changed for a second."""
        file = await self._feeding.run(partial(feed.following, _HEARTBEAT_S))
        if file is None:
            yield pb.FollowResponse(last_seq=feed.last_seq)
            return
        with contextlib.closing(file.content) as content:
            part = content.read(_PART_BYTES)
            while part:
                following = content.read(_PART_BYTES)
                yield pb.FollowResponse(
                    last_seq=feed.last_seq, data=part, snapshot=file.snapshot, complete=not following
                )
                part = following


class Follower:
    """Follows another searcher, for as long as it runs: a copy where that is needed, then every write.

    Args:
        settings: Whom to follow.
        engine: What is received goes there.
    """

    def __init__(self, settings: SearcherSettings, engine: ReplicaEngine) -> None:
        self._engine = engine
        self._target = settings.follow
        key = settings.follow_api_key
        self._policy = CallPolicy(api_key=key.get_secret_value() if key else None)
        self._config = ChannelConfig(None, settings.follow_tls.files(), settings.max_message_bytes)
        self._advanced = asyncio.Event()
        self._connected = False
        self._fits = True
        self._complete_at = time.monotonic()
        REPLICA_LAG_SECONDS.set_function(lambda: time.monotonic() - self._complete_at)

    async def run(self) -> None:
        """Follows until it is cancelled."""
        pause_s, most_s = _RETRY_S
        async with open_aio_channel(self._target, self._config) as channel:
            stub = search_pb2_grpc.SearchServiceStub(channel)
            while True:
                try:
                    await self._follow(stub)
                except (grpc.RpcError, RegionSearchError) as error:
                    reason = error if isinstance(error, RegionSearchError) else from_rpc_error(error)
                    # What does not fit to the copy, or has been lost on the way, is healed by a new one.
                    self._fits = reason.kind not in (Kind.INTERNAL, Kind.DATA_LOSS)
                    if self._connected or pause_s == most_s:
                        _log.warning("not following", searcher=self._target, reason=reason.message)
                pause_s = _RETRY_S[0] if self._connected else min(2 * pause_s, most_s)
                self._connected = False
                self._announce()
                await asyncio.sleep(pause_s)

    async def filled(self) -> None:
        """Returns once there is a copy, be it of an earlier run."""
        while not self._engine.filled:
            await self._advanced.wait()

    async def reach(self, seq: int, patience_s: float) -> bool:
        """Waits for a write, no longer than that and only while it can come; returns whether it is here."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self._connected and self._engine.last_write() < seq:
                    await self._advanced.wait()
        return self._engine.last_write() >= seq

    async def _follow(self, stub: search_pb2_grpc.SearchServiceAsyncStub) -> None:
        position = await asyncio.to_thread(self._engine.position)
        request = pb.FollowRequest(
            history=position.history if self._fits else "",
            seq=position.seq,
            image_row=position.image_row,
            record_row=position.record_row,
            schema_version=position.schema_version,
        )
        self._fits = True
        file: IO[bytes] | None = None
        call = stub.Follow(request, metadata=self._policy.metadata())
        try:
            async for response in call:
                if not self._connected:
                    _log.info("following", searcher=self._target, snapshot=response.snapshot)
                    self._connected = True
                if response.data:
                    file = file or self._engine.incoming(snapshot=response.snapshot)
                    await asyncio.to_thread(file.write, response.data)
                if file is not None and response.complete:
                    await asyncio.to_thread(self._engine.take, file, snapshot=response.snapshot)
                    file = None
                lacking = max(response.last_seq - self._engine.last_write(), 0)
                REPLICA_LAG_WRITES.set(lacking)
                if not lacking:
                    self._complete_at = time.monotonic()
                self._announce()
        finally:
            call.cancel()
            if file is not None:
                file.close()

    def _announce(self) -> None:
        """Wakes those who wait for a write, or for the connection."""
        self._advanced.set()
        self._advanced = asyncio.Event()
