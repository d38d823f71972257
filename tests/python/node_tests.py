"""The ONNX node tests through `chipfit rewrite`.

1. Every test model goes through as it is. One without a rewritten node must come back equal, field by field (so do
   the transposed convolutions whose weights are inputs: they are computed at run time, and the report must say so).
2. Tests with a convolution, or an operator that a rewrite emits, run in ONNX Runtime on the written file and must give
   the expected outputs (onnx.reference where ONNX Runtime lacks the type).
3. Transposed convolutions again with their weights as initializers: rewritten in every form, expected outputs again.

Bound: 64 steps of the type (2^-23 for float32) of max|y|, for sums of some ten terms in another order; integers equal.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.reference
import onnxruntime

from oracle import DATA, EPSILON, Tally, kept_nodes, relative_difference, require, rewrite, session

TESTDATA = Path(os.environ.get("CHIPFIT_ONNX_TESTDATA", DATA / "onnx-testdata"))
FOLDERS = ["node", "pytorch-converted", "pytorch-operator", "simple"]
EMITTED = {"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DepthToSpace", "SpaceToDepth", "Concat", "Slice", "Pad",
           "Reshape", "Transpose", "QuantizeLinear", "DequantizeLinear"}  # fmt: skip
FORMS = ["auto", "split", "rowsplit", "fused", "zero-pad"]


def tensors(folder, kind, values):
    """The test's input or output tensors by name (inputs with an initializer have none); None if one is no tensor."""
    found = {}
    for position, value in enumerate(values):
        path = folder / "test_data_set_0" / f"{kind}_{position}.pb"
        if value.type.WhichOneof("value") != "tensor_type":
            return None
        if not path.exists():
            continue
        tensor = onnx.TensorProto()
        tensor.ParseFromString(path.read_bytes())
        found[value.name] = onnx.numpy_helper.to_array(tensor)
    return found


def execute(model, feeds, outputs):
    """ONNX Runtime, or the reference evaluator where it has no kernel for the type."""
    feeds = {name: value for name, value in feeds.items() if name in {v.name for v in model.graph.input}}
    try:
        runtime = session(model)
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
        return onnx.reference.ReferenceEvaluator(model).run(outputs, feeds), "onnx.reference"
    return runtime.run(outputs, feeds), "ONNX Runtime"


def agree(model, feeds, expected):
    """The largest share of the bound that a difference takes."""
    outputs, judge = execute(model, feeds, list(expected))
    worst = 0.0
    for (name, wanted), got in zip(expected.items(), outputs):
        difference = relative_difference(wanted, got)
        bound = 64 * EPSILON.get(wanted.dtype.name, 0)
        require(difference <= bound, f"{judge}: {name} differs by {difference:.2e} of max|y|, bound {bound:.2e}")
        worst = max(worst, difference)
    return worst


def as_it_is(folder, work):
    source, written = folder / "model.onnx", work / "as-it-is.onnx"
    report = rewrite(source, written)
    before, after = onnx.load(source), onnx.load(written)
    for node in kept_nodes(report):
        require(node["reason"], f"node {node['name']} was kept and the report does not say why")
    if len(kept_nodes(report)) == len(report["nodes"]):
        require(before == after, "nothing was rewritten, but the model changed")
    if not {node.op_type for node in before.graph.node} & EMITTED:
        return
    feeds, expected = tensors(folder, "input", before.graph.input), tensors(folder, "output", before.graph.output)
    if feeds is not None and expected is not None and session_can_run(before):
        agree(after, feeds, expected)


def session_can_run(model):
    """Whether ONNX Runtime takes the original; where it does not (type or operator), there is nothing to compare."""
    try:
        session(model)
    except Exception:  # Each of ONNX Runtime's error classes derives from Exception directly.
        return False
    return True


def with_constant_weights(model, feeds):
    """The model with the transposed convolutions' weights and biases, inputs of the test, as initializers."""
    names = {name for node in model.graph.node if node.op_type == "ConvTranspose" for name in node.input[1:]}
    kept = [value for value in model.graph.input if value.name not in names]
    held = {tensor.name for tensor in model.graph.initializer}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(feeds[name], name) for name in sorted(names & feeds.keys() - held))
    if model.ir_version >= 4:
        del model.graph.input[:]
        model.graph.input.extend(kept)
    return model


def in_every_form(folder, work, form):
    model = onnx.load(folder / "model.onnx")
    feeds, expected = tensors(folder, "input", model.graph.input), tensors(folder, "output", model.graph.output)
    source, written = work / "constant-weights.onnx", work / "rewritten.onnx"
    onnx.save(with_constant_weights(model, feeds), source)
    report = rewrite(source, written, "--form", form)
    require(not kept_nodes(report), f"kept: {[node['reason'] for node in kept_nodes(report)]}")
    after = onnx.load(written)
    require(all(node.op_type != "ConvTranspose" for node in after.graph.node), "a ConvTranspose is left")
    worst = agree(after, feeds, expected)
    return f"{worst:.1e} of max|y|"


def main():
    tally = Tally()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for group in FOLDERS:
            for folder in sorted(path for path in (TESTDATA / group).iterdir() if (path / "model.onnx").exists()):
                tally.check(f"{group}/{folder.name}", as_it_is, folder, work)
                model = onnx.load(folder / "model.onnx")
                if any(node.op_type == "ConvTranspose" for node in model.graph.node):
                    for form in FORMS:
                        tally.check(f"{group}/{folder.name} --form {form}", in_every_form, folder, work, form)
    tally.close()


if __name__ == "__main__":
    main()
