"""Ray Serve: a proxy and replicas as actors, batches by its decorator; crops as they are."""

from __future__ import annotations

import sys
import time
from typing import Any

from benchmarks.compare.peers import pocket_clip
from benchmarks.compare.peers.served import Served


class Peer(Served):
    """Its defaults, but for as many calls in a replica as two batches have."""

    package = "ray"
    path = "/raw"


def main() -> None:
    """Starts Ray in place and serves."""
    import ray
    from ray import serve
    from starlette.responses import Response

    class Embed:
        def __init__(self) -> None:
            self._model = pocket_clip.Model()

        @serve.batch(max_batch_size=pocket_clip.BATCH, batch_wait_timeout_s=pocket_clip.WAIT_S)
        async def _embed(self, crops: list[bytes]) -> list[bytes]:
            return [vector.tobytes() for vector in self._model(crops)]

        async def __call__(self, request: Any) -> Any:
            return Response(await self._embed(await request.body()))

    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=200 * 2**20)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    served: Any = serve.deployment(
        num_replicas=pocket_clip.REPLICAS,
        max_ongoing_requests=2 * pocket_clip.BATCH,
        ray_actor_options={"num_cpus": 0.5},
    )(Embed)
    serve.run(served.bind(), route_prefix="/raw")
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
