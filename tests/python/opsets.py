"""Transposed convolutions in every opset 1 to 23 and every float type, through `chipfit rewrite`.

One model per opset, type and form holds one node per setting below (1-D to 3-D, pads, groups, dilations, auto_pad,
output_shape, strides over the kernel). The judge is this file's own scatter loop in float64, besides ONNX Runtime on
the original where it has the type. Bound: 16 steps of the type of max|y|; the sums have some 50 terms.
"""

import itertools
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.reference
from onnx import TensorProto, helper, numpy_helper

from oracle import EPSILON, LONG, Tally, kept_nodes, relative_difference, require, rewrite, run

TYPES = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.DOUBLE: np.dtype(np.float64),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
# ONNX Runtime promises opset 7 and later; onnx.reference lacks operators of older ones, too.
OLDEST_RUN = 7
# Name, input [N, C, ...], weight [C, M/group, ...], attributes.
SETTINGS = [
    ("plain", (2, 3, 4, 5), (3, 4, 2, 2), {"strides": [2, 2]}),
    ("k4s2p1", (1, 4, 5, 6), (4, 6, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("k3s2_op", (1, 4, 5, 3), (4, 3, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ("k5s2_asymmetric", (1, 4, 4, 4), (4, 3, 5, 5), {"strides": [2, 2], "pads": [1, 1, 2, 2]}),
    ("stride_1", (1, 3, 6, 6), (3, 4, 3, 3), {"pads": [0, 1, 2, 1]}),
    ("strides_differ", (1, 3, 4, 5), (3, 4, 3, 5), {"strides": [3, 2], "pads": [1, 0, 0, 2]}),
    ("stride_over_kernel", (1, 3, 4, 4), (3, 2, 2, 2), {"strides": [3, 3]}),
    ("dilated", (1, 3, 5, 5), (3, 4, 3, 3), {"strides": [2, 3], "dilations": [3, 2], "pads": [2, 1, 1, 2]}),
    ("groups", (1, 6, 4, 4), (6, 2, 4, 4), {"strides": [2, 2], "group": 3, "pads": [1, 1, 1, 1]}),
    ("depthwise", (1, 5, 4, 4), (5, 1, 3, 3), {"strides": [2, 2], "group": 5}),
    ("same_upper", (1, 3, 4, 5), (3, 4, 3, 4), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("same_lower", (1, 3, 4, 5), (3, 4, 3, 4), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ("valid", (1, 3, 4, 5), (3, 4, 3, 4), {"strides": [2, 2], "auto_pad": "VALID"}),
    ("output_shape", (1, 3, 4, 5), (3, 4, 3, 3), {"strides": [2, 2], "output_shape": [8, 10]}),
    ("one_axis", (2, 4, 7), (4, 3, 4), {"strides": [3], "pads": [1, 2]}),
    ("three_axes", (1, 2, 3, 4, 3), (2, 3, 3, 2, 3), {"strides": [2, 1, 2], "pads": [1, 0, 1, 1, 0, 0]}),
]


def same_pads(total, auto_pad):
    """Begin and end of an axis by the rule that runtimes follow in every opset."""
    begin = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
    return begin, total - begin


def resolve(sizes, kernel, attributes):
    """Strides, dilations, begin pads and output sizes per axis."""
    n_axes = len(sizes)
    strides, dilations = attributes.get("strides", [1] * n_axes), attributes.get("dilations", [1] * n_axes)
    more, pads = attributes.get("output_padding", [0] * n_axes), attributes.get("pads", [0] * 2 * n_axes)
    auto_pad, wanted = attributes.get("auto_pad", "NOTSET"), attributes.get("output_shape")
    begins, outputs = [], []
    for axis in range(n_axes):
        natural = strides[axis] * (sizes[axis] - 1) + more[axis] + dilations[axis] * (kernel[axis] - 1) + 1
        if wanted or auto_pad.startswith("SAME"):
            output = wanted[axis] if wanted else sizes[axis] * strides[axis]
            begin, _ = same_pads(natural - output, auto_pad)
        else:
            begin, output = pads[axis], natural - pads[axis] - pads[n_axes + axis]
        begins.append(begin)
        outputs.append(output)
    return strides, dilations, begins, outputs


def scatter(x, w, bias, attributes):
    """The definition: every input element adds its weights to the outputs it reaches. Any numeric type."""
    n_axes, group = x.ndim - 2, attributes.get("group", 1)
    strides, dilations, begins, outputs = resolve(x.shape[2:], w.shape[2:], attributes)
    per_group_in, per_group_out = x.shape[1] // group, w.shape[1]
    y = np.zeros((x.shape[0], per_group_out * group, *outputs), np.result_type(x, w))
    for tap in itertools.product(*map(range, w.shape[2:])):
        for at in itertools.product(*map(range, x.shape[2:])):
            to = [strides[a] * at[a] + dilations[a] * tap[a] - begins[a] for a in range(n_axes)]
            if not all(0 <= to[a] < outputs[a] for a in range(n_axes)):
                continue
            for g in range(group):
                inputs = slice(g * per_group_in, (g + 1) * per_group_in)
                channels = slice(g * per_group_out, (g + 1) * per_group_out)
                y[(slice(None), channels, *to)] += x[(slice(None), inputs, *at)] @ w[(inputs, slice(None), *tap)]
    return y if bias is None else y + bias.reshape(1, -1, *[1] * n_axes)


def value(name, element, shape, dynamic):
    if dynamic:
        shape = [f"{name}_{axis}" if axis != 1 else size for axis, size in enumerate(shape)]
    return helper.make_tensor_value_info(name, element, shape)


def build(opset, element, dynamic):
    """A model with one node per setting, its inputs, and the exact outputs."""
    random = np.random.default_rng(opset * 100 + element)
    nodes, inputs, outputs, weights, feeds, exact = [], [], [], [], {}, {}
    for position, (name, x_shape, w_shape, attributes) in enumerate(SETTINGS):
        if dynamic and "output_shape" in attributes:
            continue  # Its pads depend on the input's size.
        x, w = (random.standard_normal(shape).astype(TYPES[element]) for shape in (x_shape, w_shape))
        bias = random.standard_normal(w_shape[1] * attributes.get("group", 1)).astype(TYPES[element]) if position % 2 else None
        terms = [f"{name}_x", f"{name}_w"] + ([f"{name}_b"] if bias is not None else [])
        nodes.append(helper.make_node("ConvTranspose", terms, [f"{name}_y"], name=name, **attributes))
        inputs.append(value(f"{name}_x", element, x_shape, dynamic))
        weights += [numpy_helper.from_array(array, term) for array, term in zip((w, bias), terms[1:]) if array is not None]
        feeds[f"{name}_x"] = x
        wide = [None if array is None else array.astype(np.float64) for array in (x, w, bias)]
        exact[f"{name}_y"] = scatter(*wide, attributes).astype(TYPES[element])
        outputs.append(value(f"{name}_y", element, exact[f"{name}_y"].shape, dynamic))
    ir_version = 3 if opset < 9 else helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    if ir_version < 4:  # There, every initializer is an input, too.
        inputs += [helper.make_tensor_value_info(weight.name, element, weight.dims) for weight in weights]
    graph = helper.make_graph(nodes, f"opset_{opset}", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    return model, feeds, exact


def evaluate(model, feeds):
    """ONNX Runtime, else onnx.reference; both reasons when neither can."""
    try:
        return run(model, feeds), "ONNX Runtime"
    except Exception as runtime_error:  # ONNX Runtime's error classes have no common base of their own.
        names = [output.name for output in model.graph.output]
        try:
            return dict(zip(names, onnx.reference.ReferenceEvaluator(model).run(names, feeds))), "onnx.reference"
        except Exception as error:
            raise CannotRun(f"ONNX Runtime: {runtime_error}; onnx.reference: {error!r}") from error


class CannotRun(Exception):
    pass


def judge(outputs, exact, element, who):
    worst = 0.0
    for name, wanted in exact.items():
        difference = relative_difference(wanted, outputs[name])
        bound = 16 * EPSILON[TYPES[element].name]
        require(difference <= bound, f"{who}: {name} differs by {difference:.2e} of max|y|, bound {bound:.2e}")
        worst = max(worst, difference)
    return worst


def rewrite_and_compare(work, opset, element, form, dynamic):
    model, feeds, exact = build(opset, element, dynamic)
    source, written = work / "original.onnx", work / "rewritten.onnx"
    onnx.save(model, source)
    sizes = [f"--input={name}:{'x'.join(map(str, x.shape))}" for name, x in feeds.items()] if dynamic else []
    report = rewrite(source, written, "--form", form, *sizes)
    # Two dynamic axes side by side take a Reshape by computed sizes, which old opsets cannot express.
    too_old = [node for node in kept_nodes(report) if dynamic and opset < OLDEST_RUN and "opset" in node["reason"]]
    require(kept_nodes(report) == too_old, f"kept: {[(node['name'], node['reason']) for node in kept_nodes(report)]}")
    after = onnx.load(written)
    left = {node.name for node in after.graph.node if node.op_type == "ConvTranspose"}
    require(left == {node["name"] for node in too_old}, f"these are left: {left}")
    require(after.opset_import == model.opset_import and after.ir_version == model.ir_version, "opset or IR version changed")
    require(after.graph.output == model.graph.output, "the outputs' shapes changed")
    try:
        outputs, who = evaluate(after, feeds)
    except CannotRun as reason:
        # Honest only below the opsets that runtimes promise, or where the original cannot be run either: the file has
        # passed the checker and chipfit's own proof.
        require(opset < OLDEST_RUN or not can_run(model, feeds), f"the original runs, the rewritten model does not: {reason}")
        return "checked and proven, NOT run: no runtime here has all operators of this opset and type"
    worst = judge(outputs, exact, element, who)
    return f"{worst:.1e} of max|y| ({who}){f', {len(left)} kept' if left else ''}"


def can_run(model, feeds):
    try:
        evaluate(model, feeds)
    except CannotRun:
        return False
    return True


def main():
    tally = Tally()
    forms = ["auto", "split", "rowsplit", "fused", "zero-pad"]
    with tempfile.TemporaryDirectory() as name:
        for opset, element, dynamic in itertools.product(range(1, 24), TYPES, (False, True)):
            if element == TensorProto.BFLOAT16 and opset < 22:
                continue
            for position, form in enumerate(forms):
                # The long run takes all; the normal one each form in turn, all of them for opsets where operators changed.
                if not (LONG or opset in (1, 7, 11, 13, 18, 22) and not dynamic and element == TensorProto.FLOAT or (opset + element) % len(forms) == position):
                    continue
                kind = f"opset {opset} {TYPES[element].name}{' dynamic' if dynamic else ''} --form {form}"
                tally.check(kind, rewrite_and_compare, Path(name), opset, element, form, dynamic)
    tally.close()


if __name__ == "__main__":
    main()
