"""Single transposed convolutions cut out of a model, and the same part cut out of its rewritten version.

A cut goes from the value that a transposed convolution reads to the value it gives; in a quantised model from what is
dequantized to what QuantizeLinear gives. A rewrite keeps both values under their names, so one cut fits both files.
"""

from dataclasses import dataclass

import onnx
from onnx import helper, numpy_helper

import oracle


@dataclass
class Cut:
    """Where a layer begins and ends."""

    name: str
    input: str
    output: str


def cuts(model):
    """One for each transposed convolution of the top graph."""
    producers = {name: node for node in model.graph.node for name in node.output}
    found = []
    for node in model.graph.node:
        if node.op_type != "ConvTranspose":
            continue
        begin, end = node.input[0], node.output[0]
        source = producers.get(begin)
        readers = [reader for reader in model.graph.node if end in reader.input]
        if source and source.op_type == "DequantizeLinear" and [reader.op_type for reader in readers] == ["QuantizeLinear"]:
            begin, end = source.input[0], readers[0].output[0]
        found.append(Cut(node.name or node.output[0], begin, end))
    return found


def extract(model, cut, x, y):
    """The nodes between a cut's ends as a model of its own, for arrays shaped like `x` and `y`."""
    producers = {name: node for node in model.graph.node for name in node.output}
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    needed, waiting, weights = [], [cut.output], {}
    while waiting:
        name = waiting.pop()
        if name == cut.input or not name:
            continue
        if name in held:
            weights[name] = held[name]
        elif name in producers:
            node = producers[name]
            if node not in needed:
                needed.append(node)
                waiting += node.input
        else:
            raise oracle.Failure(f"{cut.name}: {cut.output} also depends on {name}")
    nodes = [node for node in model.graph.node if node in needed]
    ends = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape) for name, array in ((cut.input, x), (cut.output, y))]
    graph = helper.make_graph(nodes, "layer", ends[:1], ends[1:], list(weights.values()))
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=max(model.ir_version, 4))


def activations(model, names, feeds):
    """What the named values hold when the model runs on `feeds`."""
    wider = onnx.ModelProto()
    wider.CopyFrom(model)
    there = {output.name for output in wider.graph.output}
    wider.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(set(names) - there))
    results = oracle.run(wider, feeds, optimise=False)
    return {name: feeds[name] if name in feeds else results[name] for name in names}


def with_constants_held(model):
    """Constant nodes as initializers, so that a cut holds its weights."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            copy.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(node.attribute[0].t), node.output[0]))
        else:
            copy.graph.node.append(node)
    return copy
