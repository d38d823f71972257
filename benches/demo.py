"""The demo behind `cargo xtask demo`: a real text detector, rewritten, proven and timed, quantised and not.

Takes the folder to write to. What is printed is what was just measured on this machine, losses included.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/python"))
import layers
import oracle
import quantise
from measure import interleaved, machine, median_ms, median_ratio, pin_to_one_core
from models import real_networks, zoo_network

SECONDS = 2


def show(*arguments, last=None):
    """Runs chipfit as a reader would, and shows the command and what it says (or its last lines)."""
    words = [Path(word).name if "/" in str(word) else str(word) for word in arguments]
    print(f"\n$ chipfit {' '.join(words)}", flush=True)
    done = subprocess.run([oracle.CHIPFIT, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    lines = done.stdout.splitlines()
    if last is not None and len(lines) > last:
        print(f"  ... {len(lines) - last} more lines")
        lines = lines[-last:]
    print("\n".join(f"  {line}" for line in lines), flush=True)
    oracle.require(done.returncode == 0, f"chipfit ended with status {done.returncode}")


def runner(model, feeds):
    runtime = oracle.session(model)
    return lambda: runtime.run(None, feeds)


def layer_runner(cut_models):
    """All transposed convolutions of a network, one after the other."""
    runs = [runner(model, feeds) for model, feeds in cut_models]
    return lambda: [run() for run in runs]


def cut_layers(original, rewritten, feeds):
    """Each transposed convolution of the original and its replacement, with what it reads in the network."""
    before, after = (layers.with_constants_held(onnx.load(path)) for path in (original, rewritten))
    cuts = layers.cuts(before)
    seen = layers.activations(before, {name for cut in cuts for name in (cut.input, cut.output)}, feeds)
    return [
        [(layers.extract(model, cut, seen[cut.input], seen[cut.output]), {cut.input: seen[cut.input]}) for cut in cuts]
        for model in (before, after)
    ]


def versions(network, kind, folder, tuned_by):
    """The original's file, quantised first where asked for; rewritten by the fixed rule; and tuned by measurement."""
    original = network.path
    if kind == "int8":
        print(f"\n{network.name} quantised by ONNX Runtime's tools: uint8 activations, int8 weights per channel.", flush=True)
        original = folder / f"{network.name}-int8.onnx"
        quantise.quantise(network, original, n_pictures=4)
    rewritten, tuned = (folder / f"{original.stem}-{word}.onnx" for word in ("rewritten", "tuned"))
    show("rewrite", original, "-o", rewritten, "--force", *network.input_flags())
    oracle.chipfit("rewrite", original, "-o", tuned, "--force", *network.input_flags(), *tuned_by)
    return original, rewritten, tuned


def ratios(name, rounds):
    original, *others = rounds.values()
    return f"{name:34}{median_ms(original):9.2f} ms" + "".join(f"{median_ms(other):9.2f} ms{median_ratio(original, other):6.2f}x" for other in others)


def main():
    folder = Path(sys.argv[1])
    detector, generator = real_networks(folder)[0][0], zoo_network("dcgan", folder)
    tuned_by = ["--tune", "onnxruntime", "--interleave", "concat"]
    print("PP-OCRv4 text detection, as the Python package rapidocr-onnxruntime ships it: two transposed convolutions.")
    show("inspect", detector.path, *detector.input_flags(), last=7)
    subjects = [(detector, "float"), (detector, "int8"), (generator, "int8")]
    files = [versions(network, kind, folder, tuned_by) for network, kind in subjects]

    pin_to_one_core()
    print(f"\nTime in ONNX Runtime on one core: processor time, alternating runs, medians ({machine()}).")
    print(f"rewritten: the fixed rule. tuned: {' '.join(tuned_by)}, which keeps a node that nothing beats.")
    print("x: original / new, above 1 the new file is faster. Every output is compared with the original's.\n")
    print(f"{'':34}{'original':>12}{'rewritten':>19}{'tuned':>19}")
    for (network, kind), paths in zip(subjects, files):
        feeds = network.feeds(0)
        parts = {}
        for path in paths[1:]:
            parts[paths[0]], parts[path] = map(layer_runner, cut_layers(paths[0], path, feeds))
        print(ratios(f"{network.name} {kind}, deconvolutions", interleaved(parts, SECONDS)))
        print(ratios(f"{network.name} {kind}, whole network", interleaved({path: runner(path, feeds) for path in paths}, SECONDS)))
        outputs = [next(iter(oracle.run(path, feeds).values())) for path in paths]
        differences = [f"{np.max(np.abs(outputs[0] - other)):.1e}" for other in outputs[1:]]
        print(f"{'  largest output difference':34}{'':12}{differences[0]:>12}{differences[1]:>19}", flush=True)
    print(f"\nThe files are in .cache/{folder.name}/.")


if __name__ == "__main__":
    main()
