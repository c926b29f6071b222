"""``python -m services.segmenter``: the segmenter's process."""

from __future__ import annotations

from regionsearch.v1 import segment_pb2
from services.runtime.server import run
from services.segmenter.settings import SegmenterSettings

if __name__ == "__main__":
    settings = SegmenterSettings.load()
    # After the settings: `--help` and invalid settings need not wait for torch.
    from services.segmenter.service import segmenter

    run(settings, [segment_pb2.DESCRIPTOR.services_by_name["SegmentService"]], segmenter(settings))
