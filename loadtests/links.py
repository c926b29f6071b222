"""A network between two processes of this machine that can be slow, or gone."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from loadtests.launch import free_ports

CHUNK = 1 << 16  # bytes that are passed on at once


class Link:
    """Passes on what comes to a port of its own, in a thread of its own.

    Args:
        target: host:port of who is at its other end.

    Attributes:
        address: host:port where it listens.
        delay_s: What every 64 KiB take longer, in each direction.
    """

    def __init__(self, target: str) -> None:
        self.address = f"127.0.0.1:{free_ports(1)[0]}"
        self.delay_s = 0.0
        self._target = target
        self._cut = False
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, *self.address.split(":")), self._loop
        ).result()

    def cut(self) -> None:
        """Breaks its connections, and those that come, until it is mended."""
        self._cut = True
        self._loop.call_soon_threadsafe(self._break)

    def mend(self) -> None:
        """Passes on again."""
        self._cut = False

    def _break(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        both = [writer]
        self._open.add(writer)
        with contextlib.suppress(OSError):
            if not self._cut:
                there, out = await asyncio.open_connection(*self._target.split(":"))
                both.append(out)
                self._open.add(out)
                await asyncio.gather(self._pass_on(reader, out), self._pass_on(there, writer))
        for end in both:
            self._open.discard(end)
            end.transport.abort()

    async def _pass_on(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while data := await source.read(CHUNK):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            to.write(data)
            await to.drain()
        to.close()
