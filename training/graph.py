"""Writes the image tower of an exported embedder as a graph, which ONNX Runtime runs on a CPU."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from onnx.external_data_helper import set_external_data
from onnxscript.optimizer import remove_unused_nodes

from services.embedder.backends.open_clip import build, load_weights


def write_graph(folder: Path) -> None:
    """Writes ``embedder.onnx``, and its digest into ``embedder.json``.

    The graph holds no weights: it names their places in ``embedder.safetensors``.

    Args:
        folder: Has both files of the embedder.
    """
    described, weights = folder / "embedder.json", folder / "embedder.safetensors"
    manifest = json.loads(described.read_text())
    clip = build(manifest["model_config"])
    load_weights(clip, weights)
    size = manifest["model_config"]["vision_cfg"]["image_size"]
    program = torch.onnx.export(
        clip.eval().requires_grad_(False).visual,
        (torch.zeros(2, 3, size, size),),
        input_names=["crops"],
        output_names=["vectors"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        optimize=False,  # ONNX Runtime does it when it loads the graph; here it would compute new weights
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    _forget_origin(model)
    _drop_zero_biases(model.graph)
    remove_unused_nodes(model)
    _point_to(weights, model.graph)
    content = model.SerializeToString(deterministic=True)
    (folder / "embedder.onnx").write_bytes(content)
    manifest["graph_sha256"] = hashlib.sha256(content).hexdigest()
    described.write_text(json.dumps(manifest, indent=2) + "\n")


def _forget_origin(model: onnx.ModelProto) -> None:
    """Removes the lines of source code that each operation comes from."""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]


def _drop_zero_biases(graph: onnx.GraphProto) -> None:
    """Leaves out biases that convolutions do not have.

    torch writes zeros of the crops' type; ONNX Runtime takes them for something that is computed from the
    crops, and would not make batch normalisation a part of the convolution.
    """
    stored = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv" and stored.isdisjoint(node.input[2:]):
            del node.input[2:]


def _point_to(weights: Path, graph: onnx.GraphProto) -> None:
    """Has initializers read their values from a safetensors file of half floats."""
    content = weights.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    stored = json.loads(content[8:start])
    casts = []
    for tensor in graph.initializer:
        entry = stored.get(f"visual.{tensor.name}")
        if entry is None:
            continue
        assert entry["dtype"] == "F16", f"{tensor.name} is stored as {entry['dtype']}"
        begin, end = entry["data_offsets"]
        casts.append(helper.make_node("Cast", [f"{tensor.name}.half"], [tensor.name], to=TensorProto.FLOAT))
        tensor.name, tensor.data_type = f"{tensor.name}.half", TensorProto.FLOAT16
        tensor.raw_data = b""
        set_external_data(tensor, weights.name, offset=start + begin, length=end - begin)
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
