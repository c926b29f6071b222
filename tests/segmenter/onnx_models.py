"""Small ONNX networks with the inputs and outputs of published ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

PROTOTYPES = 8


def write_yolo(path: Path, *, side: int, features: bool = False, broken: str = "") -> Path:
    """A network with the outputs of a YOLOv8 that segments one class; its answer depends on the image.

    Args:
        path: Where it is written.
        side: Of the square input in pixels, a multiple of 32.
        features: Adds a map of stride 8 with 3 channels as a third output.
        broken: ``end_to_end``: outputs as after NMS; ``no_prototypes``: the second output is missing.
    """
    random = np.random.default_rng(3)
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(name: str, value: NDArray[np.float32] | NDArray[np.int64]) -> str:
        constants.append(numpy_helper.from_array(value, name))
        return name

    def add(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def layer(source: str, name: str, inputs: int, outputs: int, scale: float) -> str:
        weight = random.normal(0, scale, (outputs, inputs, 1, 1)).astype(np.float32)
        bias = random.normal(0, 0.3, outputs).astype(np.float32)
        return add("Conv", [source, constant(f"{name}.w", weight), constant(f"{name}.b", bias)], name)

    middle = add("Sub", ["images", constant("half", np.array(0.5, np.float32))], "middle")
    anchors = []
    for stride in (8, 16, 32):
        pooled = add(
            "AveragePool", [middle], f"pool{stride}", kernel_shape=[stride] * 2, strides=[stride] * 2
        )
        cells = side // stride
        values = layer(pooled, f"head{stride}", 3, 5 + PROTOTYPES, 3.0)
        flat = add(
            "Reshape",
            [values, constant(f"shape{stride}", np.array([1, 5 + PROTOTYPES, cells * cells]))],
            f"flat{stride}",
        )
        y, x = np.mgrid[:cells, :cells] * stride + stride / 2
        places = np.stack([x, y, np.full_like(x, 5 * stride), np.full_like(x, 4 * stride)])
        places = places.reshape(1, 4, -1).astype(np.float32)
        names = [f"{part}{stride}" for part in ("raw", "logit", "weights")]
        split = constant(f"split{stride}", np.array([4, 1, PROTOTYPES]))
        nodes.append(helper.make_node("Split", [flat, split], names, axis=1))
        moved = add("Tanh", [names[0]], f"tanh{stride}")
        moved = add(
            "Mul", [moved, constant(f"reach{stride}", np.array(2 * stride, np.float32))], f"moved{stride}"
        )
        boxes = add("Add", [moved, constant(f"places{stride}", places)], f"boxes{stride}")
        scores = add("Sigmoid", [names[1]], f"scores{stride}")
        anchors.append(add("Concat", [boxes, scores, names[2]], f"anchors{stride}", axis=1))
    add("Concat", anchors, "output0", axis=2)
    small = add("AveragePool", [middle], "small", kernel_shape=[4, 4], strides=[4, 4])
    layer(small, "output1", 3, PROTOTYPES, 2.0)
    count = sum((side // stride) ** 2 for stride in (8, 16, 32))
    shapes = {"output0": [1, 5 + PROTOTYPES, count], "output1": [1, PROTOTYPES, side // 4, side // 4]}
    if broken == "end_to_end":
        add(
            "Slice",
            ["output0", *(constant(n, np.array([v])) for n, v in (("from", 0), ("to", 30), ("axis", 2)))],
            "short",
        )
        add("Transpose", ["short"], "output2", perm=[0, 2, 1])
        shapes = {"output2": [1, 30, 5 + PROTOTYPES], "output1": shapes["output1"]}
    if broken == "no_prototypes":
        del shapes["output1"]
    if features:
        add("Identity", ["pool8"], "output2")
        shapes["output2"] = [1, 3, side // 8, side // 8]
    graph = helper.make_graph(
        nodes,
        "yolo",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in shapes.items()],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path
