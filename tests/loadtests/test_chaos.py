"""What chaos does to a network, and whom it blames for a request that failed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from loadtests.chaos import RECOVERY_S, Round, judge
from loadtests.keeper import Outcome
from loadtests.links import CHUNK, Link


@pytest.fixture
def link() -> Iterator[Link]:
    """To one who sends everything back."""

    def echo(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(CHUNK):
                connection.sendall(data)

    def listen() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=listen, daemon=True).start()
        yield Link(f"127.0.0.1:{listener.getsockname()[1]}")
        listener.shutdown(socket.SHUT_RDWR)


def connected(link: Link) -> socket.socket:
    host, port = link.address.split(":")
    return socket.create_connection((host, int(port)), 30)


def asked(connection: socket.socket) -> bytes:
    connection.sendall(b"hello")
    return connection.recv(5)


def broken(answer: Callable[[], bytes]) -> bool:
    try:
        return not answer()
    except OSError:
        return True


def test_a_link_passes_on_what_it_gets_and_later_when_it_is_slow(link: Link) -> None:
    with connected(link) as connection:
        assert asked(connection) == b"hello"
        link.delay_s = 0.1
        begin = time.monotonic()
        assert asked(connection) == b"hello"
        assert time.monotonic() - begin >= 0.2  # there and back


def test_a_link_that_is_cut_breaks_connections_until_it_is_mended(link: Link) -> None:
    with connected(link) as connection, connected(link) as other:
        assert asked(connection) == asked(other) == b"hello"
        link.cut()
        assert broken(lambda: connection.recv(1))
    assert broken(lambda: asked(connected(link)))
    link.mend()
    with connected(link) as connection:
        assert asked(connection) == b"hello"


def test_a_failure_belongs_to_the_last_fault_and_long_after_it_to_none() -> None:
    rounds = [Round("kill", 100, 110), Round("full disk", 140, 150), Round("kill", 180, 190)]
    outcomes = [
        Outcome(99, 101, "503"),
        Outcome(102, 108, None),
        Outcome(112, 115, "503"),
        Outcome(138, 145, "507"),
        Outcome(150 + RECOVERY_S + 1, 170, "ReadTimeout"),
        Outcome(195, 196, None),
    ]
    (disk, kill), unexplained = judge(rounds, outcomes)
    assert (kill.what, kill.times, kill.requests, kill.errors) == ("kill", 2, 4, {"503": 2})
    assert (kill.slowest_s, kill.last_error_s) == (6, 5)
    assert (disk.requests, disk.errors, disk.last_error_s) == (2, {"507": 1, "ReadTimeout": 1}, 20)
    assert unexplained == ["ReadTimeout: sent 11 s after the end of: full disk"]
