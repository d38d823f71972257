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
from models import real_networks

SECONDS = 6


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


def main():
    folder = Path(sys.argv[1])
    network = real_networks(folder)[0][0]
    feeds, sizes = network.feeds(0), network.input_flags()
    files = {"float": (network.path, folder / "pp-ocrv4-det-rewritten.onnx"), "int8": (folder / "pp-ocrv4-det-int8.onnx", folder / "pp-ocrv4-det-int8-rewritten.onnx")}

    print("PP-OCRv4 text detection, as the Python package rapidocr-onnxruntime ships it: two transposed convolutions.")
    show("inspect", network.path, *sizes, last=8)
    show("rewrite", files["float"][0], "-o", files["float"][1], "--force", *sizes)
    print("\nThe same network quantised by ONNX Runtime's tools (uint8 activations, int8 weights per channel):", flush=True)
    quantise.quantise(network, files["int8"][0], n_pictures=4)
    show("rewrite", files["int8"][0], "-o", files["int8"][1], "--force", *sizes)

    pin_to_one_core()
    picture = "x".join(str(n) for n in feeds["x"].shape)
    print(f"\nTime in ONNX Runtime, one thread, processor time, alternating runs, medians; input {picture}, a scanned page\n({machine()})\n")
    print(f"{'':8}{'whole network':>34}{'its transposed convolutions':>36}   outputs")
    print(f"{'':8}{'original':>12}{'rewritten':>12}{'ratio':>10}{'original':>14}{'rewritten':>12}{'ratio':>10}")
    for kind, (original, rewritten) in files.items():
        whole = interleaved({"original": runner(original, feeds), "rewritten": runner(rewritten, feeds)}, SECONDS)
        before, after = cut_layers(original, rewritten, feeds)
        parts = interleaved({"original": layer_runner(before), "rewritten": layer_runner(after)}, SECONDS / 3)
        cells = ""
        for rounds, width in ((whole, 12), (parts, 14)):
            a, b = rounds["original"], rounds["rewritten"]
            cells += f"{median_ms(a):{width - 3}.2f} ms{median_ms(b):9.2f} ms{median_ratio(a, b):9.2f}x"
        outputs = [list(oracle.run(path, feeds).values())[0] for path in (original, rewritten)]
        print(f"{kind:8}{cells}   differ by {np.max(np.abs(outputs[0] - outputs[1])):.1e} at most", flush=True)
    print("\nratio: original / rewritten; above 1 the rewritten file is faster.")
    print(f"The files are in {folder.name}/: {', '.join(Path(path).name for pair in files.values() for path in pair if folder in Path(path).parents)}")


if __name__ == "__main__":
    main()
