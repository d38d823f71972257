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
        if arguments.node_tests:
            node_tests(arguments.shapes_binary, arguments.node_tests, work, report)
    sys.exit(1 if report.failures else 0)


if __name__ == "__main__":
    main()
