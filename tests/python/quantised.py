"""Quantised transposed convolutions (DequantizeLinear, ConvTranspose, QuantizeLinear) through `chipfit rewrite`.

The settings of opsets.py with uint8 and int8 activations, symmetric and asymmetric weights, per tensor and per
channel, from opset 10 on. The judge is the integer definition: acc = sum (x - zx)(w - zw) + bias, in integers;
y = clamp(round(acc * sx * sw / sy) + zy). ONNX Runtime multiplies by its scales in float32, so it may land one step
away where the exact quotient is next to a tie; more than one step, or more than 1% of the elements, is a failure.
"""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from oracle import LONG, Tally, kept_nodes, require, rewrite, run, steps_apart
from opsets import SETTINGS, scatter

ELEMENTS = {np.uint8: TensorProto.UINT8, np.int8: TensorProto.INT8}
OFTEN_ONE_STEP = 0.01


def random_scales(random, count):
    return (random.uniform(0.5, 2.0, count) / 128).astype(np.float32)


def build(opset, activation, weight_type, per_channel, symmetric):
    """A model with a quantised node per setting, its inputs, and the outputs by the integer definition."""
    random = np.random.default_rng(opset)
    low, high = np.iinfo(activation).min, np.iinfo(activation).max
    nodes, inputs, outputs, constants, feeds, exact = [], [], [], [], {}, {}

    def constant(name, array):
        constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    for position, (name, x_shape, w_shape, attributes) in enumerate(SETTINGS):
        group = attributes.get("group", 1)
        n_scales = w_shape[1] if per_channel else 1
        w = random.integers(np.iinfo(weight_type).min, np.iinfo(weight_type).max + 1, w_shape).astype(weight_type)
        x = random.integers(low, high + 1, x_shape).astype(activation)
        x_zero = activation(random.integers(low, high + 1))
        middle = 128 if weight_type is np.uint8 else 0
        w_zeros = (np.full(n_scales, middle) if symmetric else random.integers(middle - 20, middle + 20, n_scales)).astype(weight_type)
        x_scale, w_scales = random_scales(random, 1)[0], random_scales(random, n_scales)
        bias = random.integers(-5000, 5000, w_shape[1] * group).astype(np.int32) if position % 2 else None

        along = (1, -1, *[1] * (len(w_shape) - 2))
        out_scales = np.tile(np.broadcast_to(w_scales, w_shape[1]), group).astype(np.float64) * np.float64(x_scale)
        wide_w = w.astype(np.int64) - np.broadcast_to(w_zeros, w_shape[1]).reshape(along).astype(np.int64)
        total = scatter(x.astype(np.int64) - int(x_zero), wide_w, None if bias is None else bias.astype(np.int64), attributes)
        value = total * out_scales.reshape(along)
        y_scale, y_zero = np.float32(np.std(value) / 40 + 1e-6), activation((low + high + 1) // 2 + 3)
        exact[f"{name}_y"] = np.clip(np.rint(value / np.float64(y_scale)) + int(y_zero), low, high).astype(activation)

        scalar = (lambda values: values) if per_channel else (lambda values: values[0])
        axis = {"axis": 1} if per_channel else {}
        terms = [f"{name}_xf", f"{name}_wf"]
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_x", constant(f"{name}_xs", x_scale), constant(f"{name}_xz", x_zero)], [terms[0]]))
        nodes.append(
            helper.make_node("DequantizeLinear", [constant(f"{name}_w", w), constant(f"{name}_ws", scalar(w_scales)), constant(f"{name}_wz", scalar(w_zeros))], [terms[1]], **axis)
        )
        if bias is not None:
            terms.append(f"{name}_bf")
            bias_scales = (np.tile(w_scales, group) * x_scale).astype(np.float32)
            scale = constant(f"{name}_bs", bias_scales if per_channel else bias_scales[0])
            nodes.append(helper.make_node("DequantizeLinear", [constant(f"{name}_b", bias), scale], [terms[2]], **({"axis": 0} if per_channel else {})))
        nodes.append(helper.make_node("ConvTranspose", terms, [f"{name}_yf"], name=name, **attributes))
        nodes.append(helper.make_node("QuantizeLinear", [f"{name}_yf", constant(f"{name}_ys", y_scale), constant(f"{name}_yz", y_zero)], [f"{name}_y"]))
        inputs.append(helper.make_tensor_value_info(f"{name}_x", ELEMENTS[activation], x_shape))
        outputs.append(helper.make_tensor_value_info(f"{name}_y", ELEMENTS[activation], exact[f"{name}_y"].shape))
        feeds[f"{name}_x"] = x
    graph = helper.make_graph(nodes, "quantised", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets)), feeds, exact


def distance(outputs, exact, who):
    """Elements one step away from the definition, of all; a Failure beyond that."""
    apart, count = 0, 0
    for name, wanted in exact.items():
        steps, differing = steps_apart(wanted, outputs[name])
        require(steps <= 1, f"{who}: {name} is {steps} steps from the integer definition, at {differing} of {wanted.size} elements differing")
        apart, count = apart + differing, count + wanted.size
    require(apart <= OFTEN_ONE_STEP * count, f"{who}: {apart} of {count} elements are one step off")
    return f"{apart} of {count} one step off"


def rewrite_and_compare(work, form, *kind):
    model, feeds, exact = build(*kind)
    source, written = work / "original.onnx", work / "rewritten.onnx"
    onnx.save(model, source)
    # ONNX Runtime has no DepthToSpace on integers before opset 13; the default interleave is for any runtime.
    interleave = ["--interleave", "reshape"] if kind[0] < 13 else []
    report = rewrite(source, written, "--form", form, *interleave)
    require(not kept_nodes(report), f"kept: {[(node['name'], node['reason']) for node in kept_nodes(report)]}")
    after = onnx.load(written)
    require(all(node.op_type != "ConvTranspose" for node in after.graph.node), "a ConvTranspose is left")
    dequantized = {name for node in after.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    require(all(set(node.input) <= dequantized for node in after.graph.node if node.op_type == "Conv"), "a Conv reads floats")
    # Optimised, ONNX Runtime computes in integers; not optimised, in float between the Q and DQ nodes.
    optimised, plain = distance(run(after, feeds), exact, "optimised"), distance(run(after, feeds, optimise=False), exact, "not optimised")
    return f"{optimised}; {plain} not optimised; native {distance(run(model, feeds), exact, 'native')}"


def main():
    tally = Tally()
    forms = ["auto", "split", "rowsplit", "fused", "zero-pad"]
    kinds = list(itertools.product((10, 13, 17, 21, 23), (np.uint8, np.int8), (np.int8, np.uint8), (False, True), (True, False)))
    with tempfile.TemporaryDirectory() as name:
        for position, (opset, activation, weight_type, per_channel, symmetric) in enumerate(kinds):
            if per_channel and opset < 13:
                continue  # DequantizeLinear has no axis yet.
            for form in forms if LONG else [forms[position % len(forms)]]:
                kind = f"{activation.__name__} x {weight_type.__name__}, {'per channel' if per_channel else 'per tensor'}, {'symmetric' if symmetric else 'asymmetric'}"
                tally.check(f"opset {opset} {kind} --form {form}", rewrite_and_compare, Path(name), form, opset, activation, weight_type, per_channel, symmetric)
    tally.close()


if __name__ == "__main__":
    main()
