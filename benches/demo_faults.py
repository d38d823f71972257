"""The second half of `cargo xtask demo`: a classifier quantised, run on a processor that makes errors, and the page about it.

CNTK's MNIST network on the MNIST test set. Takes the folder to write to; ends with a page that any browser opens.
"""

import shutil
import sys
from pathlib import Path

from demo import show
import oracle

SINGLE = """mode = "single"
seed = 1
images = 500
trials = 100000
sites = ["mul", "acc", "out", "weight"]
"""
RATE = """mode = "rate"
seed = 1
images = 1000
[[curve]]
name = "mul + acc"
sites = ["mul", "acc"]
ber = [0, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4]
[[curve]]
name = "out"
sites = ["out"]
ber = [0, 1e-5, 1e-4, 1e-3, 1e-2]
[[curve]]
name = "weight"
sites = ["weight"]
ber = [0, 1e-5, 1e-4, 1e-3, 1e-2]
"""
FAULTS = """[[fault]]
sites = ["mul", "acc"]
kind = "flip"
ber = 1e-6
layers = "*"
"""
PLAN = """vote = "output"
[[protect]]
layers = "*"
"""


def main():
    folder = Path(sys.argv[1])
    model, pictures = oracle.DATA / "mnist-conv.onnx", oracle.DATA / "mnist"
    if not (model.exists() and pictures.exists()):
        print("\nThe network or its pictures could not be fetched: the second half of the demo is SKIPPED.")
        return
    written = {}
    for name, text in {"single.toml": SINGLE, "rate.toml": RATE, "faults.toml": FAULTS, "plan.toml": PLAN}.items():
        written[name] = folder / name
        written[name].write_text(text)
    print("\nA network on a processor that makes errors: CNTK's MNIST classifier, quantised, then struck.")
    int8 = folder / "mnist.int8.onnx"
    show("quantize", model, "--data", pictures, "-o", int8, "--force", last=4)
    show("evaluate", model, "--data", pictures, "--pictures", 2000)
    show("evaluate", int8, "--data", pictures)
    show("evaluate", int8, "--data", pictures, "--pictures", 2000, "--faults", written["faults.toml"])
    show("evaluate", int8, "--data", pictures, "--pictures", 2000, "--faults", written["faults.toml"], "--tmr", written["plan.toml"])
    for name in ("rate", "single"):
        run = folder / f"campaign-{name}"
        # A folder of an earlier demo would be resumed, or refused where the tool has changed since.
        shutil.rmtree(run, ignore_errors=True)
        show("inject", int8, "--data", pictures, "--campaign", written[f"{name}.toml"], "-o", run, last=24)
        show("report", run, "-o", folder / f"{name}.html", "--force")
    print(f"\nOpen .cache/{folder.name}/rate.html and .cache/{folder.name}/single.html in a browser.")


if __name__ == "__main__":
    main()
