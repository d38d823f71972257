"""Four real networks and the six of the zoo, rewritten and run in ONNX Runtime on real pictures.

Float: every form; the written file's outputs against the original's. Bound: 1e-4 of max|y| for exact forms. A float32
network of this size, its sums taken in another order, differs by some 1e-6 to 1e-5; a wrong tap or shift by 1e-2 and more.
Quantised by ONNX Runtime's tools: each transposed convolution, cut out of both files and fed what it really sees in the
network, must give the same integers, at most one step apart near ties, at most 1% of them; counted and printed.
"""

import functools
import itertools
import tempfile
from pathlib import Path

import numpy as np
import onnx

from layers import activations, cuts, extract, with_constants_held
from models import ZOO, real_networks, zoo_network
from oracle import LONG, Tally, kept_nodes, relative_difference, require, rewrite, run, steps_apart
from quantise import quantise

BOUND = 1e-4
N_INPUTS = 10 if LONG else 3
# OpenVINO picks other algorithms for other shapes, with errors of their own.
OPENVINO_BOUND = 1e-3
FORMS = ["auto", "split", "rowsplit", "fused", "zero-pad"]
ALL_KINDS = list(itertools.product(("uint8", "int8"), (True, False)))
FORMS_IN_SHORT = {True: ["auto", "fused"], False: ["auto"]}
SMALL = {"pp-ocrv4-det", "espcn-2x", "dcgan"}


@functools.cache
def original_outputs(path, feeds):
    return [run(path, feeds(position)) for position in range(N_INPUTS)]


def in_openvino(path, feeds):
    """The outputs of a float model in OpenVINO, in float32."""
    import openvino

    network = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return list(network(feeds).values())


def float_form(network, form, work):
    written = work / "rewritten.onnx"
    # The proof of one form in the normal run: the command's own tests prove the others.
    proof = network.input_flags() if LONG or form == "auto" else ["--no-verify"]
    report = rewrite(network.path, written, "--form", form, *proof)
    require(report["nodes"] and not kept_nodes(report), f"kept: {[node['reason'] for node in kept_nodes(report)]}")
    require(all(node.op_type != "ConvTranspose" for node in onnx.load(written).graph.node), "a ConvTranspose is left")
    before, after = original_outputs(network.path, network.feeds), [run(written, network.feeds(position)) for position in range(N_INPUTS)]
    # Relative to the largest value over all inputs: a detector that sees nothing gives 1e-9 everywhere, which is no scale.
    worst = max(relative_difference(*(np.stack([outputs[name] for outputs in runs]) for runs in (before, after))) for name in before[0])
    require(worst <= BOUND, f"differs by {worst:.2e} of max|y|, bound {BOUND:.0e}")
    if LONG:
        outputs = in_openvino(written, network.feeds(0))
        apart = max(relative_difference(a, b) for a, b in zip(before[0].values(), outputs))
        require(apart <= OPENVINO_BOUND, f"OpenVINO differs by {apart:.2e} of max|y|, bound {OPENVINO_BOUND:.0e}")
    return f"{worst:.1e} of max|y| on {N_INPUTS} inputs, {len(report['nodes'])} nodes"


def quantised(network, activation, per_channel, form, work):
    source, written = work / f"{network.name}-{activation}-{per_channel}.onnx", work / "rewritten.onnx"
    if not source.exists():
        quantise(network, source, activation, per_channel)
    proof = network.input_flags() if LONG or form == "auto" else ["--no-verify"]
    report = rewrite(source, written, "--form", form, *proof)
    require(report["nodes"] and not kept_nodes(report), f"kept: {[node['reason'] for node in kept_nodes(report)]}")
    before, after = with_constants_held(onnx.load(source)), with_constants_held(onnx.load(written))
    feeds, layers = network.feeds(0), cuts(before)
    seen = activations(before, {name for cut in layers for name in (cut.input, cut.output)}, feeds)
    apart, count = 0, 0
    for cut in layers:
        x, y = seen[cut.input], seen[cut.output]
        require(y.dtype.name == activation, f"{cut.name} was not quantised")
        native, ours = (run(extract(model, cut, x, y), {cut.input: x})[cut.output] for model in (before, after))
        steps, differing = steps_apart(native, ours)
        require(steps <= 1, f"{cut.name}: {steps} steps apart, {differing} of {native.size} elements")
        apart, count = apart + differing, count + native.size
    require(apart <= count / 100, f"{apart} of {count} elements are one step apart")
    whole = max(relative_difference(a, b) for a, b in zip(run(source, feeds).values(), run(written, feeds).values()))
    return f"{apart} of {count} elements one step apart in {len(layers)} layers; whole network {whole:.1e} of max|y|"


def main():
    tally = Tally()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        networks, missing = real_networks(work)
        for absent, why in missing:
            tally.skip(absent, why)
        for zoo in ZOO:
            tally.check(f"zoo {zoo}", lambda zoo=zoo: networks.append(zoo_network(zoo, work)))
        for network in networks:
            for form in FORMS:
                tally.check(f"{network.name} --form {form}", float_form, network, form, work)
            kinds = ALL_KINDS if LONG or network.name in SMALL else ALL_KINDS[:1]
            for (activation, per_channel), form in itertools.product(kinds, FORMS if LONG else FORMS_IN_SHORT[network.name in SMALL]):
                kind = f"{activation}, {'per channel' if per_channel else 'per tensor'}"
                tally.check(f"{network.name} {kind} --form {form}", quantised, network, activation, per_channel, form, work)
    tally.close()


if __name__ == "__main__":
    main()
