"""The third part of `cargo xtask demo`: a network trained from nothing, then retrained by a faulty device over TLS.

A small MobileNet for Fashion-MNIST. The device is a process of its own; with and without a plan that computes half of the
network's work three times (penalty 50%). Ends with a page that any browser opens.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from demo import show
import oracle

FAULTS = """[[fault]]
sites = ["mul", "acc"]
kind = "flip"
ber = 1e-5
layers = "*"
"""
DEVICE = """name = "camera"
pki = "pki/devices/camera"
faults = "faults.toml"
seed = 1
"""
TEST = ["--test-pictures", 2000, "--test-draws", 3, "--seed", 1]
TRAINING = ["--pictures", 12000, "--epochs", 2, "--learning-rate", "1e-3"]


def device(folder):
    """Starts the device and gives the process and its address."""
    process = subprocess.Popen(
        [oracle.CHIPFIT, "device", "--listen", "127.0.0.1:0", "--config", "device.toml"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    line = process.stdout.readline()
    oracle.require("listens on" in line, f"the device says '{line}'")
    print(f"\n$ chipfit device --listen 127.0.0.1:0 --config device.toml\n  {line.strip()}", flush=True)
    return process, line.split("listens on ")[1].split(",")[0]


def accuracy(run, name):
    found = json.loads((run / "summary.json").read_text())["accuracy"][name]
    return f"{100 * found['top1']['value']:.2f}%"


def main():
    folder = Path(sys.argv[1]) / "retrain"
    pictures = oracle.DATA / "fashion-mnist"
    if not pictures.exists():
        print("\nFashion-MNIST could not be fetched: the third part of the demo is SKIPPED.")
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, text in {"faults.toml": FAULTS, "device.toml": DEVICE}.items():
        (folder / name).write_text(text)
    print("\nA network that learns the errors of the processor it will run on: a MobileNet for Fashion-MNIST.")
    scratch = folder / "trained"
    data = ["--data", pictures, *TEST]
    # One step without errors in the loop: the model that comes from training in fp32 is what goes on.
    show("retrain", "--from-scratch", "mobilenet-fashion", "--scratch-epochs", 2, *data, "--steps", 1, "-o", scratch, last=12)
    model = scratch / "scratch.int8.onnx"
    show("protect", model, "--data", pictures, "--faults", folder / "faults.toml", "--penalty", 50, "-o", folder / "plan.toml", last=12)
    show("pki", "init", "--dir", folder / "pki")
    show("pki", "device", "camera", "--dir", folder / "pki")
    process, address = device(folder)
    try:
        link = ["--device", f"camera@{address}", "--pki", folder / "pki" / "trainer"]
        for name, plan in (("without-tmr", []), ("with-tmr", ["--tmr", folder / "plan.toml"])):
            run = folder / name
            show("retrain", model, *data, *TRAINING, "--narrow", 0.01, *link, *plan, "-o", run)
            show("report", run, "-o", folder / f"{name}.html", "--force")
    finally:
        process.terminate()
        process.wait()
    runs = {name: folder / name for name in ("without-tmr", "with-tmr")}
    before = accuracy(runs["without-tmr"], "before_faulty")
    print(f"\nOn the faulty device: {before} before, {accuracy(runs['without-tmr'], 'after_faulty')} after,")
    print(f"{accuracy(runs['with-tmr'], 'after_faulty')} after with half of the work computed three times.")
    print("\nOpen .cache/demo/retrain/without-tmr.html and .cache/demo/retrain/with-tmr.html in a browser.")


if __name__ == "__main__":
    main()
