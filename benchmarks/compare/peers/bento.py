"""The service of `serve_bentoml`, which BentoML wants to find in a module that it imports."""

import bentoml

from benchmarks.compare.peers import pocket_clip, serve_bentoml


@bentoml.service(workers=pocket_clip.REPLICAS)
class Embed:
    """One model a worker."""

    def __init__(self) -> None:
        self._model = pocket_clip.Model()

    @bentoml.api(batchable=True, max_batch_size=pocket_clip.BATCH, max_latency_ms=2000)  # type: ignore[untyped-decorator]
    def embed(self, crops: list[str]) -> list[str]:
        """Vectors in base 64."""
        return serve_bentoml.embed(self._model, crops)
