"""``python -m services.embedder``: the embedder's process."""

from __future__ import annotations

from regionsearch.v1 import embed_pb2
from services.embedder.settings import EmbedderSettings
from services.runtime.server import run

if __name__ == "__main__":
    settings = EmbedderSettings.load()
    # After the settings: `--help` and invalid settings need not wait for torch.
    from services.embedder.service import embedder

    run(settings, [embed_pb2.DESCRIPTOR.services_by_name["EmbedService"]], embedder(settings))
