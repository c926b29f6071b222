"""`python -m services.searcher`: the searcher process; with `migrate`, a copy between the two engines."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from regionsearch.v1 import search_pb2
from regionsearch.v1.search_pb2_grpc import add_SearchServiceServicer_to_server
from services.runtime.server import Lifespan, Server, run
from services.searcher import migrate
from services.searcher.bounded_executor import BoundedExecutor
from services.searcher.embedded import faiss_compat
from services.searcher.factory import open_engine
from services.searcher.metrics import report_sizes
from services.searcher.replication import Replication
from services.searcher.servicer import SearchServicer
from services.searcher.settings import SearcherSettings
from services.searcher.snapshot_schedule import take_on_schedule

SERVICES = [search_pb2.DESCRIPTOR.services_by_name["SearchService"]]


def searcher(settings: SearcherSettings) -> Lifespan:
    """The lifespan of the service: open the engine, serve, close it."""

    @contextlib.asynccontextmanager
    async def lifespan(server: Server) -> AsyncIterator[None]:
        engine = await asyncio.to_thread(open_engine, settings, server.fail)
        reads = BoundedExecutor("reads", settings.read_threads, settings.max_waiting)
        writes = BoundedExecutor(
            "writes",
            settings.write_threads,
            settings.max_waiting,
            settings.max_write_bytes,
            "max_write_bytes",
        )
        snapshots = BoundedExecutor("snapshots and restores", 1, 0)
        replication = Replication(settings, engine, server.closing)
        servicer = SearchServicer(
            engine,
            settings.limits,
            reads,
            writes,
            snapshots,
            settings.max_message_bytes,
            settings.max_read_bytes,
            replication,
            server.closing,
        )
        server.add(add_SearchServiceServicer_to_server, servicer)
        sizes = asyncio.create_task(report_sizes(engine))
        scheduled = asyncio.create_task(take_on_schedule(engine, snapshots, settings.embedded))
        try:
            async with replication.running():
                yield
        finally:
            for task in (sizes, scheduled):
                task.cancel()
            for calls in (reads, writes, snapshots):
                await asyncio.to_thread(calls.close)
            await asyncio.to_thread(engine.close)

    return lifespan


def main() -> None:
    """Serves until told to stop."""
    if sys.argv[1:2] in (["migrate"], ["move"]):  # `move` is its former name
        sys.exit(migrate.main(sys.argv[2:]))
    settings = SearcherSettings.load()
    if settings.engine == "embedded":
        faiss_compat.take_over(settings.embedded.search_threads)
    run(settings, SERVICES, searcher(settings))


if __name__ == "__main__":
    main()
