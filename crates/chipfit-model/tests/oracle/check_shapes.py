"""Compares Chipfit's shape inference with two independent judges: the ONNX checker's own inference and what
ONNX Runtime really computes.

    check_shapes.py --shapes-binary BIN [--models DIR ...] [--node-tests DIR]

BIN is the example `shapes` of chipfit-model. Models: every shape that onnx.shape_inference finds must be found
too, and, with inputs fixed, every intermediate value must be known and as ONNX Runtime made it. Node tests:
declared shapes are stripped first, so that nothing can be copied from them; what is inferred must be the shape of
the stored output. Exits with 1 at any contradiction, or where something is unknown that is not listed below.
"""

import argparse
import collections
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnx.shape_inference
from onnx import numpy_helper

# Operators whose output shapes depend on data, or that are about sequences, strings or training. A node test with
# one of them may stay open (but not be wrong); every other one must be inferred fully.
MAY_STAY_OPEN = set(
    """Unique NonMaxSuppression Compress NonZero StringNormalizer TfIdfVectorizer Adam Adagrad Momentum Gradient
    SequenceConstruct SequenceAt SequenceErase SequenceInsert SequenceLength SplitToSequence ConcatFromSequence
    OptionalGetElement OptionalHasElement""".split()
)
# Tests whose shape changes from one iteration to the next, or that feed a version (Scan 8) that is not followed.
MAY_STAY_OPEN_TESTS = {"node/test_loop11", "node/test_scan_sum"}
# Heights and widths given to inputs that leave them open.
SIZES = [(64, 96), (128, 160)]


def ask(binary, requests):
    """One answer per request; a request is a path and a dict of overrides."""
    lines = ["\t".join([str(path)] + [f"{n}:{'x'.join(map(str, d))}" for n, d in over.items()]) for path, over in requests]
    done = subprocess.run([binary], input="\n".join(lines) + "\n", capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"the shapes binary failed ({done.returncode}): {done.stderr}")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    if len(answers) != len(requests):
        sys.exit(f"{len(requests)} requests, {len(answers)} answers: {done.stderr}")
    return answers


def strip(graph):
    """Removes every declared shape but those of the main graph's inputs, also in subgraphs."""
    del graph.value_info[:]
    for output in graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                strip(inner)
                for value in inner.input:
                    if value.type.HasField("tensor_type"):
                        value.type.tensor_type.ClearField("shape")


def load_tensor(path):
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
        return numpy_helper.to_array(tensor) if tensor.data_type else None
    except Exception:  # sequences and optionals are stored in the same way
        return None


def is_shape_like(array):
    """Inputs that stand for shapes, axes, pads, sizes or scales."""
    if array.ndim > 1 or array.size > 64:
        return False
    return array.dtype in (np.int64, np.int32) or (array.dtype.kind == "f" and array.size <= 8)


def node_tests(binary, folder, work, report):
    requests, cases = [], []
    for path in sorted(folder.glob("*/*/model.onnx")):
        data = path.parent / "test_data_set_0"
        if not data.is_dir():
            continue
        model = onnx.load(path)
        inputs = [load_tensor(p) for p in sorted(data.glob("input_*.pb"), key=lambda p: int(p.stem.split("_")[1]))]
        outputs = [load_tensor(p) for p in sorted(data.glob("output_*.pb"), key=lambda p: int(p.stem.split("_")[1]))]
        strip(model.graph)
        constants = {i.name for i in model.graph.initializer}
        free = [v.name for v in model.graph.input if v.name not in constants]
        for name, array in zip(free, inputs):
            if array is None or not is_shape_like(array):
                continue
            model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        written = work / f"node{len(cases)}.onnx"
        onnx.save(model, written)
        requests.append((written, {}))
        names = [v.name for v in model.graph.output]
        cases.append((f"{path.parent.parent.name}/{path.parent.name}", model.graph.node, names, outputs))
    answers = ask(binary, requests)
    misses, total, full = collections.Counter(), 0, 0
    for (label, nodes, names, outputs), answer in zip(cases, answers):
        if "error" in answer:
            report.fail(f"{label}: {answer['error']}")
            continue
        ops = "+".join(sorted({n.op_type for n in nodes})) if len(nodes) < 4 else "(network)"
        for name, array in zip(names, outputs):
            if array is None:
                continue
            total += 1
            dtype, dims = answer["values"].get(name, [None, None])
            want = list(array.shape)
            if contradicts(dims, want):
                report.fail(f"{label}: {name} has shape {want}, inferred {dims}")
            elif dims is None or not all(isinstance(d, int) for d in dims):
                misses[ops] += 1
                expected = label in MAY_STAY_OPEN_TESTS or any(n.op_type in MAY_STAY_OPEN for n in nodes)
                (report.note if expected else report.fail)(f"{label}: {name} has shape {want}, inferred {dims}")
            else:
                full += 1
            # Before numpy had bfloat16, the test data kept it as its bits.
            want = {"float32": "float", "float64": "double", "uint16": "bfloat16"}.get(array.dtype.name, array.dtype.name)
            if dtype and array.dtype.kind != "O" and dtype not in (want, array.dtype.name):
                report.fail(f"{label}: {name} is {array.dtype}, inferred {dtype}")
    print(f"node tests: {full} of {total} outputs fully inferred ({100 * full / max(total, 1):.1f}%)")
    print("  not fully inferred: " + ", ".join(f"{op} {n}" for op, n in misses.most_common()))
    if total == 0:
        report.fail(f"{folder} holds no node test")


def contradicts(dims, want):
    if dims is None:
        return False
    return len(dims) != len(want) or any(isinstance(d, int) and d != w for d, w in zip(dims, want))


def shape_of(value):
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else (d.dim_param or None) for d in dims]


def against_onnx(binary, path, work, report):
    model = onnx.load(path)
    strip(model.graph)
    stripped = work / (path.stem + ".stripped.onnx")
    onnx.save(model, stripped)
    theirs = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    [answer] = ask(binary, [(stripped, {})])
    if "error" in answer:
        return report.fail(f"{path.name}: {answer['error']}")
    found, both, less = 0, 0, 0
    for value in list(theirs.value_info) + list(theirs.output):
        want = shape_of(value)
        _, dims = answer["values"].get(value.name, [None, None])
        found += 1
        if want is None:
            continue
        if dims is None or len(dims) != len(want):
            report.fail(f"{path.name}: {value.name} is {want} for onnx, {dims} for us")
            continue
        for mine, onnxs in zip(dims, want):
            if isinstance(onnxs, int) and mine is None:
                less += 1
                report.fail(f"{path.name}: {value.name} is {want} for onnx, {dims} for us")
            elif isinstance(onnxs, int) and isinstance(mine, int) and mine != onnxs:
                report.fail(f"{path.name}: {value.name} is {want} for onnx, {dims} for us")
            else:
                both += 1
    print(f"{path.name}: {found} values, {both} dimensions as onnx.shape_inference has them or better")


def fixed_shape(name, dims, size):
    """A shape for a dynamic input: batch 1, an image of `size` unless the file fixes it."""
    return [d if isinstance(d, int) and d > 0 else (1 if i == 0 else size[i % 2]) for i, d in enumerate(dims)]


def against_runtime(binary, path, size, work, report):
    import onnxruntime

    model = onnx.load(path)
    constants = {i.name for i in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in constants]
    shapes = {v.name: fixed_shape(v.name, shape_of(v), size) for v in inputs}
    strip(model.graph)
    written = work / (path.stem + ".open.onnx")
    onnx.save(model, written)
    [answer] = ask(binary, [(written, shapes)])
    if "error" in answer:
        report.fail(f"{path.name}: {answer['error']}")
        return True
    typed = onnx.shape_inference.infer_shapes(model).graph
    known = {v.name: v for v in typed.value_info}
    outputs = {o.name for o in model.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name and name not in outputs and name in known:
                model.graph.output.append(onnx.helper.make_tensor_value_info(name, known[name].type.tensor_type.elem_type, None))
                outputs.add(name)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(1)
    types = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64}
    feeds = {i.name: random.random(shapes[i.name]).astype(types[i.type]) for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    try:
        results = session.run(names, feeds)
    except onnxruntime.capi.onnxruntime_pybind11_state.Fail as error:
        print(f"{path.name} {size}: ONNX Runtime refuses this size: {str(error)[:120]}")
        return False
    unknown = 0
    for name, array in zip(names, results):
        _, dims = answer["values"].get(name, [None, None])
        if contradicts(dims, list(array.shape)):
            report.fail(f"{path.name} {size}: {name} has shape {list(array.shape)}, inferred {dims}")
        elif dims != list(array.shape):
            unknown += 1
            report.fail(f"{path.name} {size}: {name} has shape {list(array.shape)}, inferred only {dims}")
    print(f"{path.name} {size}: {len(names) - unknown} of {len(names)} values fully inferred and as ONNX Runtime made them")
    return True


def runs(model, feeds):
    """The shapes that ONNX Runtime makes; None where it refuses the node."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [list(a.shape) for a in session.run(None, feeds)]
    except Exception as error:
        if "InvalidProtobuf" in type(error).__name__:
            raise
        return None


def one_node(op, inputs, outputs, opset, **attributes):
    """A model of one node. `inputs`: name to array; those of names in capitals are constants."""
    make = onnx.helper.make_tensor_value_info
    kind = lambda a: onnx.helper.np_dtype_to_tensor_dtype(a.dtype)
    node = onnx.helper.make_node(op, [n if a is not None else "" for n, a in inputs.items()], outputs, **attributes)
    inputs = {n: a for n, a in inputs.items() if a is not None}
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [make(n, kind(a), a.shape) for n, a in inputs.items() if not n.isupper()],
        [onnx.ValueInfoProto(name=o) for o in outputs],
        [numpy_helper.from_array(a, n) for n, a in inputs.items() if n.isupper()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    return model, {n: a for n, a in inputs.items() if not n.isupper()}


def random_window(random):
    """A random convolution, transposed convolution or pooling.

    Left out is where ONNX Runtime departs from the definition: SAME pooling with dilations (it pads for the kernel
    without them), SAME transposed convolutions whose stride is longer than the kernel (it makes them shorter than
    n*s), and windows longer than the padded input, which mean nothing.
    """
    op = random.choice(["Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"])
    axes = int(random.integers(1, 4))
    pick = lambda low, high: [int(n) for n in random.integers(low, high, axes)]
    kernel, strides, dilations = pick(1, 5), pick(1, 5), pick(1, 4)
    sizes = pick(1, 11)
    attributes = {"strides": strides}
    opset = int(random.choice([11, 13, 17, 19, 22]))
    if op in ("Conv", "ConvTranspose") or random.random() < 0.5:
        attributes["dilations"] = dilations
    if op in ("AveragePool", "LpPool") and opset < 19:
        attributes.pop("dilations", None)
    padding = random.choice(["pads", "SAME_UPPER", "SAME_LOWER", "VALID", ""])
    if padding == "pads":
        attributes["pads"] = [int(n) for n in random.integers(0, 3, 2 * axes)]
    elif padding:
        attributes["auto_pad"] = padding
    if op.endswith("Pool") and padding.startswith("SAME"):
        attributes.pop("dilations", None)
    extents = [d * (k - 1) + 1 for d, k in zip(attributes.get("dilations", [1] * axes), kernel)]
    if op != "ConvTranspose":
        sizes = [max(n, e) for n, e in zip(sizes, extents)]
    elif padding.startswith("SAME"):
        kernel = [max(k, s) for k, s in zip(kernel, strides)]
    x = np.zeros([2, 4] + sizes, np.float32)
    if op.endswith("Pool"):
        attributes["kernel_shape"] = kernel
        if random.random() < 0.5 and not (op == "LpPool" and opset < 18):
            attributes["ceil_mode"] = 1
        return one_node(op, {"x": x}, ["y"], opset, **attributes)
    group = int(random.choice([1, 2, 4]))
    attributes["group"] = group
    if random.random() < 0.5:
        attributes["kernel_shape"] = kernel
    if op == "Conv":
        return one_node(op, {"x": x, "W": np.zeros([8, 4 // group] + kernel, np.float32)}, ["y"], opset, **attributes)
    if random.random() < 0.5:
        attributes["output_padding"] = [int(random.integers(0, s)) for s in strides]
    elif random.random() < 0.2:
        attributes["output_shape"] = [s * n for s, n in zip(strides, sizes)]
    return one_node(op, {"x": x, "W": np.zeros([4, 3] + kernel, np.float32)}, ["y"], opset, **attributes)


def newer_nodes():
    """Forms that the stored node tests, made for opset 17, do not have yet."""
    x = np.zeros([2, 6, 9, 5], np.float32)
    ints = lambda *n: np.array(n, np.int64)
    for axes in ([1], [-1, 2], None):
        for keepdims in (0, 1):
            for op in ("ReduceMean", "ReduceMax", "ReduceL2"):
                yield one_node(op, {"x": x, "A": None if axes is None else ints(*axes)}, ["y"], 18, keepdims=keepdims)
    yield one_node("ReduceMean", {"x": x}, ["y"], 18, noop_with_empty_axes=1)
    yield one_node("Split", {"x": x}, ["a", "b"], 18, axis=2, num_outputs=2)
    yield one_node("Split", {"x": x}, ["a", "b", "c", "d"], 18, axis=2, num_outputs=4)
    yield one_node("Split", {"x": x, "S": ints(4, 2)}, ["a", "b"], 13, axis=1)
    yield one_node("Split", {"x": x}, ["a", "b", "c"], 11, axis=1)
    yield one_node("Pad", {"x": x, "P": ints(1, 2), "V": None, "A": ints(-2)}, ["y"], 18)
    for policy in ("stretch", "not_larger", "not_smaller"):
        yield one_node("Resize", {"x": x, "R": None, "S": None, "Z": ints(14, 11)}, ["y"], 18, axes=[2, 3], keep_aspect_ratio_policy=policy)
    for scale in (0.5, 0.6, 1.7, 2.0, 3.3):
        scales = np.array([1, 1, scale, scale], np.float32)
        yield one_node("Resize", {"x": x, "R": None, "S": scales}, ["y"], 13, mode="nearest")
        yield one_node("Resize", {"x": x, "S": scales}, ["y"], 10, mode="nearest")
        yield one_node("Upsample", {"x": x, "S": np.maximum(scales, 1)}, ["y"], 9)
        yield one_node("Upsample", {"x": x}, ["y"], 7, scales=[float(max(s, 1)) for s in scales])
    for start, end, step in [(1, 4, 1), (-1, -100, -2), (0, 2**31 - 1, 3), (7, 2, -1), (5, 5, 1), (-100, 100, 4)]:
        yield one_node("Slice", {"x": x, "B": ints(start), "E": ints(end), "A": ints(2), "S": ints(step)}, ["y"], 13)
        if step == 1:
            yield one_node("Slice", {"x": x}, ["y"], 9, starts=[start], ends=[end], axes=[2])
    for target in ([0, -1], [2, 3, -1, 5], [-1], [0, 0, 45], [12, 9, 5]):
        yield one_node("Reshape", {"x": x, "S": ints(*target)}, ["y"], 14)
    yield one_node("Shape", {"x": x}, ["y"], 15, start=1, end=-1)
    yield one_node("Squeeze", {"x": np.zeros([1, 3, 1], np.float32)}, ["y"], 13)
    yield one_node("Squeeze", {"x": np.zeros([1, 3, 1], np.float32)}, ["y"], 11, axes=[-1])
    yield one_node("Unsqueeze", {"x": x}, ["y"], 11, axes=[0, -1])
    yield one_node("Flatten", {"x": x}, ["y"], 13, axis=-1)
    yield one_node("Tile", {"x": x, "R": ints(1, 2, 1, 3)}, ["y"], 13)
    yield one_node("TopK", {"x": x, "K": ints(3)}, ["v", "i"], 11, axis=2)
    yield one_node("TopK", {"x": x}, ["v", "i"], 9, axis=2, k=3)
    yield one_node("DepthToSpace", {"x": np.zeros([2, 8, 3, 4], np.float32)}, ["y"], 11, blocksize=2, mode="CRD")
    yield one_node("SpaceToDepth", {"x": np.zeros([2, 8, 6, 4], np.float32)}, ["y"], 13, blocksize=2)
    for equation in ("bij,bjk->bik", "bij,bjk", "...ij,...jk->...ik", "ij->", "bii->bi"):
        a, b = np.zeros([2, 3, 3], np.float32), np.zeros([2, 3, 4], np.float32)
        operands = {"x": a} if "," not in equation else {"x": a, "w": b}
        operands = {"x": a[0]} if equation == "ij->" else operands
        yield one_node("Einsum", operands, ["y"], 12, equation=equation)
    for shape in ([4], [5, 4], [2, 1, 4, 7], [3, 5, 4]):
        yield one_node("MatMul", {"x": np.zeros(shape, np.float32), "w": np.zeros(shape[:-2] + [shape[-1], 6], np.float32)}, ["y"], 13)
    q = np.zeros([1, 4, 6, 6], np.uint8)
    one, zero = np.array(1, np.float32), np.array(0, np.uint8)
    w = np.zeros([5, 4, 3, 3], np.uint8)
    yield one_node("QLinearConv", {"x": q, "XS": one, "XZ": zero, "W": w, "WS": one, "WZ": zero, "YS": one, "YZ": zero}, ["y"], 10, strides=[2, 2])
    yield one_node("ConvInteger", {"x": q, "W": w}, ["y"], 10, pads=[1, 1, 1, 1])
    for layout in ("forward", "bidirectional"):
        d = 1 + (layout == "bidirectional")
        for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
            weights = {"W": np.zeros([d, gates * 7, 6], np.float32), "R": np.zeros([d, gates * 7, 7], np.float32)}
            outputs = ["y", "h", "c"] if op == "LSTM" else ["y", "h"]
            yield one_node(op, {"x": np.zeros([5, 2, 6], np.float32), **weights}, outputs, 14, hidden_size=7, direction=layout)


def against_runtime_nodes(binary, work, report, n_random):
    random = np.random.default_rng(7)
    cases = list(newer_nodes())
    n_fixed = len(cases)
    cases += [random_window(random) for _ in range(n_random)]
    requests, wanted, refused = [], [], collections.Counter()
    for i, (model, feeds) in enumerate(cases):
        made = runs(model, feeds)
        node = model.graph.node[0]
        if made is None:
            refused[node.op_type] += 1
            if i < n_fixed:
                report.fail(f"ONNX Runtime refuses the test's {node.op_type} of opset {model.opset_import[0].version}")
            continue
        written = work / f"one{i}.onnx"
        onnx.save(model, written)
        requests.append((written, {}))
        wanted.append((model, made))
    for (model, made), answer in zip(wanted, ask(binary, requests)):
        node = model.graph.node[0]
        for name, want in zip([o.name for o in model.graph.output], made):
            dims = answer["values"].get(name, [None, None])[1] if "error" not in answer else answer["error"]
            if dims != want:
                attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
                shapes = [shape_of(v) for v in model.graph.input] + [list(t.dims) for t in model.graph.initializer]
                report.fail(f"{node.op_type} opset {model.opset_import[0].version} {attributes} {shapes}: {name} is {want}, inferred {dims}")
    print(f"single nodes: {len(wanted)} as ONNX Runtime made them; it refuses {dict(refused)}")
    if len(wanted) < n_fixed + n_random // 3:
        report.fail("ONNX Runtime refuses too many of the random nodes")


class Report:
    def __init__(self, verbose):
        self.failures, self.verbose = [], verbose

    def fail(self, text):
        self.failures.append(text)
        print("WRONG " + text)

    def note(self, text):
        if self.verbose:
            print("  open " + text)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes-binary", required=True)
    parser.add_argument("--models", action="append", default=[], type=pathlib.Path)
    parser.add_argument("--node-tests", type=pathlib.Path)
    parser.add_argument("--random-nodes", type=int, default=400)
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    report = Report(arguments.verbose)
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        for folder in arguments.models:
            for path in sorted(folder.glob("*.onnx")):
                against_onnx(arguments.shapes_binary, path, work, report)
                ran = [against_runtime(arguments.shapes_binary, path, size, work, report) for size in SIZES]
                if not any(ran):
                    report.fail(f"{path.name}: ONNX Runtime ran none of the sizes {SIZES}")
        against_runtime_nodes(arguments.shapes_binary, work, report, arguments.random_nodes)
        if arguments.node_tests:
            node_tests(arguments.shapes_binary, arguments.node_tests, work, report)
    sys.exit(1 if report.failures else 0)


if __name__ == "__main__":
    main()
