"""All of ours, as `regionsearch up` starts it, over gRPC."""

from __future__ import annotations

from benchmarks.compare.peers import ours_http


class Peer(ours_http.Peer):
    """The same client with another address."""

    @property
    def url(self) -> str:
        return f"grpc://{self._stack.grpc}"
