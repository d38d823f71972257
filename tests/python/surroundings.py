"""What a rewrite must leave alone, and the places where transposed convolutions hide.

Metadata, doc strings, unknown fields, value_info, custom domains, sparse initializers, other nodes and their order,
external data, name collisions; If, Loop and Scan bodies, local functions, Constant nodes, Identity, shared weights, weights that
are overridable inputs. Outputs before and after are compared in ONNX Runtime where it can run the model.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from oracle import Tally, kept_nodes, relative_difference, require, rewrite, run

RANDOM = np.random.default_rng(2)
OPSET = helper.make_opsetid("", 17)
# Sums of at most 64 float32 terms in another order, in a loop three times over: far below what a wrong tap does.
BOUND = 64 * 2.0**-23


def weight(name, *shape):
    return numpy_helper.from_array(RANDOM.standard_normal(shape).astype(np.float32), name)


def real(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def deconv(x, w, y, name="up", **more):
    return helper.make_node("ConvTranspose", [x, w], [y], name=name, strides=[2, 2], pads=[1, 1, 1, 1], **more)


def assemble(nodes, inputs, outputs, weights=(), functions=(), opsets=(OPSET,), **more):
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(weights), **more)
    return helper.make_model(graph, opset_imports=list(opsets), functions=list(functions), ir_version=8)


def unknown_field(message, number, text):
    """The message with a field that its schema does not know."""
    key = number << 3 | 2
    extra = bytes([key & 127 | 128, key >> 7]) + bytes([len(text)]) + text
    again = type(message)()
    again.ParseFromString(message.SerializeToString() + extra)
    return again


# Models; each function returns the model and whether every transposed convolution must have been rewritten.


def decorated():
    """Everything a file can carry besides the computation."""
    custom = helper.make_node("Polish", ["side"], ["polished"], domain="org.example", name="custom", grade="fine")
    nodes = [
        helper.make_node("Relu", ["x"], ["before"], name="first", doc_string="kept"),
        deconv("before", "w", "after"),
        custom,
        unknown_field(helper.make_node("Add", ["after", "c"], ["y"], name="last"), 200, b"node"),
    ]
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([1.5], np.float32), "sparse"), numpy_helper.from_array(np.array([2], np.int64), "at"), [4]
    )
    model = assemble(
        nodes,
        [real("x", 1, 3, 5, 6), real("side", 4)],
        [real("y", 1, 4, 10, 12), real("polished", 4)],
        [weight("w", 3, 4, 4, 4), weight("c", 4, 1, 1)],
        opsets=[OPSET, helper.make_opsetid("org.example", 3)],
        value_info=[real("before", 1, 3, 5, 6), real("after", 1, 4, 10, 12)],
        sparse_initializer=[sparse],
        doc_string="the graph",
    )
    model.producer_name, model.producer_version, model.model_version, model.domain = "maker", "1.2", 7, "org.example.models"
    model.doc_string = "the model"
    helper.set_model_props(model, {"licence": "none", "b": "2"})
    annotation = model.graph.quantization_annotation.add()
    annotation.tensor_name = "after"
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="c")
    model.graph.CopyFrom(unknown_field(model.graph, 201, b"graph"))
    return unknown_field(model, 202, b"model")


def weights_used_twice():
    """Two transposed convolutions and another reader share one weight."""
    nodes = [deconv("x", "w", "a", "up_1"), deconv("x", "w", "b", "up_2"), helper.make_node("ReduceSum", ["w"], ["s"]),
             helper.make_node("Add", ["a", "b"], ["c"]), helper.make_node("Add", ["c", "s"], ["y"])]  # fmt: skip
    return assemble(nodes, [real("x", 1, 3, 5, 6)], [real("y", 1, 4, 10, 12)], [weight("w", 3, 4, 4, 4)])


def weight_is_an_output():
    """The weight is a graph output, too; and one transposed convolution's result is output and read."""
    nodes = [deconv("x", "w", "y"), helper.make_node("Relu", ["y"], ["z"])]
    return assemble(nodes, [real("x", 1, 3, 5, 6)], [real("y", 1, 4, 10, 12), real("z", 1, 4, 10, 12), real("w", 3, 4, 4, 4)], [weight("w", 3, 4, 4, 4)])


def constant_and_identity():
    """The weight comes from a Constant node through Identity."""
    constant = helper.make_node("Constant", [], ["raw"], name="constant", value=weight("", 3, 4, 4, 4))
    nodes = [constant, helper.make_node("Identity", ["raw"], ["w"], name="same"), deconv("x", "w", "y")]
    return assemble(nodes, [real("x", 1, 3, 5, 6)], [real("y", 1, 4, 10, 12)])


def overridable_weight():
    """The weight is an input with a default value."""
    return assemble([deconv("x", "w", "y")], [real("x", 1, 3, 5, 6), real("w", 3, 4, 4, 4)], [real("y", 1, 4, 10, 12)], [weight("w", 3, 4, 4, 4)])


def unnamed_nodes():
    """Nodes without names, and a symbolic size."""
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["a"], strides=[2, 2]), helper.make_node("ConvTranspose", ["a", "v"], ["y"], strides=[2, 2])]
    return assemble(nodes, [real("x", "n", 3, "h", "w_")], [real("y", "n", 2, "h4", "w4")], [weight("w", 3, 4, 2, 2), weight("v", 4, 2, 2, 2)])


def branches(weights_inside):
    def branch(name):
        inside = [weight(f"{name}_w", 3, 4, 4, 4)] if weights_inside else []
        nodes = [deconv("x", f"{name}_w" if weights_inside else "w", f"{name}_up", name), helper.make_node("Relu", [f"{name}_up"], [f"{name}_y"])]
        return helper.make_graph(nodes, name, [], [real(f"{name}_y", 1, 4, 10, 12)], inside)

    nodes = [helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0), helper.make_node("Greater", ["sum", "zero"], ["positive"]),
             helper.make_node("If", ["positive"], ["y"], name="choice", then_branch=branch("yes"), else_branch=branch("no"))]  # fmt: skip
    zero = numpy_helper.from_array(np.float32(0), "zero")
    return assemble(nodes, [real("x", 1, 3, 5, 6)], [real("y", 1, 4, 10, 12)], [zero] if weights_inside else [zero, weight("w", 3, 4, 4, 4)])


def if_bodies():
    """Both branches of an If hold one, with weights of their own."""
    return branches(weights_inside=True)


def if_bodies_outer_weight():
    """Both branches read one weight of the outer graph."""
    return branches(weights_inside=False)


def loop_body():
    """A Loop's body holds one; its size stays the same from turn to turn."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("ConvTranspose", ["state", "w"], ["wide"], name="inner", pads=[1, 1, 1, 1]),
         helper.make_node("Tanh", ["wide"], ["next"])],
        "body",
        [helper.make_tensor_value_info("turn", TensorProto.INT64, []), helper.make_tensor_value_info("go", TensorProto.BOOL, []), real("state", 1, 3, 5, 6)],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, []), real("next", 1, 3, 5, 6)],
        [weight("w", 3, 3, 3, 3)],
    )  # fmt: skip
    turns, true = numpy_helper.from_array(np.int64(3), "turns"), numpy_helper.from_array(np.bool_(True), "true")
    nodes = [helper.make_node("Loop", ["turns", "true", "x"], ["y"], name="loop", body=body)]
    return assemble(nodes, [real("x", 1, 3, 5, 6)], [real("y", 1, 3, 5, 6)], [turns, true])


def scan_body():
    """A Scan's body holds one."""
    body = helper.make_graph([deconv("frame", "w", "out", "inner")], "body", [real("frame", 1, 3, 5, 6)], [real("out", 1, 4, 10, 12)], [weight("w", 3, 4, 4, 4)])
    return assemble([helper.make_node("Scan", ["x"], ["y"], num_scan_inputs=1, body=body)], [real("x", 2, 1, 3, 5, 6)], [real("y", 2, 1, 4, 10, 12)])


def local_function():
    """A local function holds one, its weight in a Constant node; it is called twice."""
    body = [helper.make_node("Constant", [], ["w"], value=weight("", 3, 3, 4, 4)), deconv("in", "w", "wide", "inner"), helper.make_node("Relu", ["wide"], ["out"])]
    function = helper.make_function("org.example", "Up", ["in"], ["out"], body, [OPSET])
    nodes = [helper.make_node("Up", ["x"], ["a"], domain="org.example"), helper.make_node("Up", ["a"], ["y"], domain="org.example")]
    opsets = [OPSET, helper.make_opsetid("org.example", 1)]
    return assemble(nodes, [real("x", 1, 3, 5, 6)], [real("y", 1, 3, 20, 24)], functions=[function], opsets=opsets)


def weight_at_run_time():
    """The weight is computed: the node must be kept, and the model stay equal."""
    nodes = [helper.make_node("Mul", ["w", "scale"], ["scaled"]), deconv("x", "scaled", "y")]
    return assemble(nodes, [real("x", 1, 3, 5, 6), real("scale", 1)], [real("y", 1, 4, 10, 12)], [weight("w", 3, 4, 4, 4)])


def unknown_attribute():
    """An attribute that no version defines: the node must be kept. (The checker refuses it before and after.)"""
    return assemble([deconv("x", "w", "y", mystery=1)], [real("x", 1, 3, 5, 6)], [real("y", 1, 4, 10, 12)], [weight("w", 3, 4, 4, 4)])


def nothing_to_rewrite():
    """No transposed convolution at all."""
    return assemble([helper.make_node("Conv", ["x", "w"], ["y"], name="conv")], [real("x", 1, 3, 5, 6)], [real("y", 1, 4, 3, 4)], [weight("w", 4, 3, 3, 3)])


REWRITTEN = [decorated, weights_used_twice, weight_is_an_output, constant_and_identity, overridable_weight, unnamed_nodes, if_bodies,
             if_bodies_outer_weight, loop_body, scan_body, local_function]  # fmt: skip
KEPT = [weight_at_run_time, unknown_attribute, nothing_to_rewrite]
INPUT_FLAGS = {"unnamed_nodes": ["--input", "x:2x3x5x6"]}
NOT_RUNNABLE = {"decorated", "unknown_attribute"}


def feeds_for(model):
    held = {tensor.name for tensor in model.graph.initializer}
    sizes = {"n": 2, "h": 5, "w_": 6}
    shapes = {v.name: [sizes.get(d.dim_param, d.dim_value) for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    return {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in shapes.items() if name not in held}


def same_results(before, after, feeds):
    outputs, again = run(before, feeds), run(after, feeds)
    require(list(outputs) == list(again), "the outputs' names changed")
    worst = max(relative_difference(outputs[name], again[name]) for name in outputs)
    require(worst <= BOUND, f"outputs differ by {worst:.2e} of max|y|, bound {BOUND:.2e}")
    return f"{worst:.1e} of max|y|"


def graphs(model):
    """Every list of nodes of a model: the graph, its subgraphs, the functions."""
    waiting = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs


def deconvolutions(model):
    return [node for graph in graphs(model) for node in graph.node if node.op_type == "ConvTranspose"]


def in_order(wanted, found, what):
    """Each wanted message occurs, bytes equal, in the same order."""
    remaining = iter([message.SerializeToString(deterministic=True) for message in found])
    for message in wanted:
        require(message.SerializeToString(deterministic=True) in remaining, f"{what} '{message.name}' is gone, changed or moved")


def rest(model):
    """The model without nodes, initializers, value_info and inputs, which are compared apart, as bytes."""
    copy = type(model)()
    copy.CopyFrom(model)
    for field in (copy.graph.node, copy.graph.initializer, copy.graph.value_info, copy.graph.input):
        del field[:]
    return copy.SerializeToString(deterministic=True)


def inputs_besides_weights(model):
    """Inputs without a default value; the default of a weight goes, and its input with it."""
    held = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in held]


def untouched(before, after):
    """All that has nothing to do with the top graph's transposed convolutions is there, bytes equal, in order."""
    others = [node for node in before.graph.node if node.op_type != "ConvTranspose"]
    read = {name for node in others for name in node.input} | {output.name for output in before.graph.output}
    # A Constant or Identity that only fed a weight may go.
    others = [node for node in others if node.op_type not in ("Constant", "Identity") or read & set(node.output) - {"raw"}]
    in_order(others, after.graph.node, "node")
    in_order([tensor for tensor in before.graph.initializer if tensor.name in read], after.graph.initializer, "initializer")
    in_order(inputs_besides_weights(before), inputs_besides_weights(after), "input")
    require(len(inputs_besides_weights(before)) == len(inputs_besides_weights(after)), "the rewritten model has more inputs")
    in_order(before.graph.value_info, after.graph.value_info, "value_info")
    require(rest(before) == rest(after), "something besides nodes, initializers, value_info and inputs changed")


def rewritten(work, build, *flags):
    model = build()
    source, written = work / "original.onnx", work / "rewritten.onnx"
    onnx.save(model, source)
    report = rewrite(source, written, *INPUT_FLAGS.get(build.__name__, []), *flags)
    require(not kept_nodes(report), f"kept: {[(node['name'], node['reason']) for node in kept_nodes(report)]}")
    before, after = onnx.load(source), onnx.load(written)
    require(not deconvolutions(after), "a ConvTranspose is left")
    if build not in (if_bodies, if_bodies_outer_weight, loop_body, scan_body, local_function):
        untouched(before, after)
    if build.__name__ not in NOT_RUNNABLE:
        return same_results(before, after, feeds_for(before))
    return None


def kept(work, build):
    source, written = work / "original.onnx", work / "rewritten.onnx"
    onnx.save(build(), source)
    report = rewrite(source, written)
    require(all(node["reason"] for node in kept_nodes(report)), "a kept node has no reason")
    require(len(kept_nodes(report)) == len(report["nodes"]), "a node was rewritten")
    require(onnx.load(source) == onnx.load(written), "the model changed")


def only_and_keep(work):
    """--only rewrites one node, --keep all but one."""
    source, written = work / "original.onnx", work / "rewritten.onnx"
    onnx.save(weights_used_twice(), source)
    for flag, left in (("--only", "up_2"), ("--keep", "up_1")):
        report = rewrite(source, written, flag, "up_1")
        names = [node.name for node in deconvolutions(onnx.load(written))]
        require(names == [left], f"{flag} up_1 left {names}")
        require([node["name"] for node in kept_nodes(report)] == [left], f"{flag} up_1 reports {report['nodes']}")
        same_results(onnx.load(source), onnx.load(written), feeds_for(onnx.load(source)))


def names_never_collide(work):
    """A model that already uses every name which a first rewrite made up."""
    source, written = work / "original.onnx", work / "rewritten.onnx"
    model = constant_and_identity()
    onnx.save(model, source)
    rewrite(source, written)
    after = onnx.load(written).graph
    old = {name for node in model.graph.node for name in (*node.input, *node.output, node.name)}
    new_values = sorted({name for node in after.node for name in (*node.input, *node.output)} | {tensor.name for tensor in after.initializer})
    new_nodes = sorted({node.name for node in after.node})
    last = "y"
    for position, name in enumerate(name for name in new_values if name not in old):
        last_name = new_nodes[position % len(new_nodes)] if position < len(new_nodes) else f"relu_{position}"
        model.graph.node.append(helper.make_node("Relu", [last], [name], name=last_name if last_name not in old else f"relu_{position}"))
        last = name
    model.graph.node.append(helper.make_node("Relu", [last], ["z"]))
    model.graph.output.append(real("z", 1, 4, 10, 12))
    onnx.save(model, source)
    rewrite(source, written)
    nodes = [node.name for node in onnx.load(written).graph.node if node.name]
    require(len(nodes) == len(set(nodes)), "two nodes have one name")
    return same_results(model, onnx.load(written), feeds_for(model))


def external_data(work):
    """Weights in a file of their own, larger than the threshold; written beside another model in another folder."""
    nodes = [helper.make_node("Conv", ["x", "k"], ["a"], pads=[1, 1, 1, 1]), deconv("a", "w", "y")]
    model = assemble(nodes, [real("x", 1, 3, 5, 6)], [real("y", 1, 32, 10, 12)], [weight("k", 64, 3, 3, 3), weight("w", 64, 32, 4, 4)])
    folder = work / "external"
    folder.mkdir()
    (folder / "out").mkdir()
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.bin", size_threshold=1024)
    before = onnx.load(folder / "model.onnx")
    rewrite(folder / "model.onnx", folder / "out" / "model.onnx")
    require(os.path.getsize(folder / "model.bin") > 0, "the original's data is gone")
    os.rename(folder / "model.bin", folder / "elsewhere.bin")  # The result must not lean on the original's data.
    return same_results(before, onnx.load(folder / "out" / "model.onnx"), feeds_for(before))


def main():
    tally = Tally()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for build in REWRITTEN:
            tally.check(build.__name__, rewritten, work, build)
        for interleave in ("reshape", "concat"):
            tally.check(f"loop_body --interleave {interleave}", rewritten, work, loop_body, "--interleave", interleave)
        for build in KEPT:
            tally.check(build.__name__, kept, work, build)
        for special in (only_and_keep, names_never_collide, external_data):
            tally.check(special.__name__, special, work)
    tally.close()


if __name__ == "__main__":
    main()
