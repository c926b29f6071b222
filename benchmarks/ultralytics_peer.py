"""Times ultralytics' own pipeline, in an environment of its own; a line on stdin is a run.

Arguments: a YOLOv8 that segments, as ONNX, an RGB image as .npy, options as JSON. With the first one alone it
exports an untrained model of FastSAM-s's architecture.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

out, sys.stdout = sys.stdout, sys.stderr  # where ultralytics talks from its import on
from ultralytics import YOLO  # noqa: E402

if len(sys.argv) == 2:
    YOLO("yolov8s-seg.yaml").export(format="onnx", imgsz=1024)
    print(0, file=out)
    sys.exit()

path, pixels, options = sys.argv[1], np.load(sys.argv[2]), json.loads(sys.argv[3])
model = YOLO(path, task="segment")


def predict() -> int:
    """Runs it; returns the number of masks."""
    masks = model.predict(pixels[..., ::-1], **options)[0].masks
    return 0 if masks is None else len(masks)


print(predict(), file=out, flush=True)
for _ in sys.stdin:
    begin = time.perf_counter()
    predict()
    print(time.perf_counter() - begin, file=out, flush=True)
