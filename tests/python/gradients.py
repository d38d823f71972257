"""Gradients against PyTorch's: training from scratch, and retraining through the integers that a processor computed.

From scratch: the zoo's trainable networks with batch statistics (torch_graph.py). Retraining: QDQ models as fake-quantised
networks, straight through every rounding, the clip mask from the bytes, the same integer activations, with and without
faults. PyTorch computes in float64, ours in float32: every gradient must agree within BOUND of the largest of its tensor.

Needs a Python with torch. Environment: CHIPFIT (the command), CHIPFIT_TRAIN_EXAMPLES (a folder with the examples
`float_gradients` and `gradients` of chipfit-train; default: the release build).
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as functional
from onnx import numpy_helper

from oracle import CHIPFIT, ROOT, Tally, require
from torch_graph import FloatGraph, gradients

EXAMPLES = Path(os.environ.get("CHIPFIT_TRAIN_EXAMPLES", ROOT / "target/release/examples"))
BOUND = 1e-4
# A bias in front of a normalisation has gradient 0; what is left of its cancelling terms is rounding.
FLOOR = 1e-5
FAULTS = '[[fault]]\nsites = ["mul", "acc"]\nkind = "flip"\nber = 1e-5\nlayers = "*"\n'


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    require(done.returncode == 0, f"{command[0]}: {done.stderr.strip()[-500:]}")
    return done.stdout


def worst(found, expected):
    """The largest difference, as a share of the largest expected number, and whether it is within the bound."""
    require(found.shape == expected.shape, f"shapes {found.shape} and {expected.shape}")
    largest, apart = np.abs(expected).max(), np.abs(found - expected).max()
    return apart / max(largest, 1e-30), apart <= BOUND * largest + FLOOR


def compare(pairs):
    """`pairs`: name to found and expected. Returns a note."""
    require(pairs, "nothing was compared")
    results = {name: worst(found.astype(np.float64), expected) for name, (found, expected) in pairs.items()}
    for name, (share, is_near) in results.items():
        require(is_near, f"'{name}' is {share:.1e} of its largest gradient away")
    return f"{len(pairs)} tensors, at most {max(share for share, _ in results.values() if share < 1):.1e} apart"


def zoo(network, folder):
    path = folder / f"{network}.onnx"
    run(CHIPFIT, "zoo", network, "--batch", "dynamic", "-o", path)
    return path


def from_scratch(network, pictures, folder):
    model = onnx.load(zoo(network, folder))
    sides = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    random = np.random.default_rng(2)
    # Seeded weights expect the zoo's own input; the raw pixels of ResNet-8 are 0 to 255.
    x = (random.uniform(0, 255, [pictures, *sides]) if network == "resnet8" else random.normal(0, 1, [pictures, *sides]))
    x, labels = x.astype(np.float32), random.integers(0, 10, pictures)
    given = {"given/x": x, "given/labels": labels, "given/smoothing": np.float32(0.05)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in given.items())
    onnx.save(model, folder / "given.onnx")
    run(EXAMPLES / "float_gradients", folder / "given.onnx", folder / "found.onnx")
    found = {t.name: numpy_helper.to_array(t) for t in onnx.load(folder / "found.onnx").graph.initializer}
    loss, expected, statistics = gradients(model, x, labels, float(np.float32(0.05)))
    require(abs(found["found/loss"] - loss) <= 1e-5 * loss, f"loss {found['found/loss']}, PyTorch {loss}")
    pairs = {name: (found[f"found/gradient/{name}"], array) for name, array in expected.items()}
    pairs |= {name: (found[f"found/running/{name}"], array) for name, array in statistics.items()}
    return compare(pairs)


class FakeQuantised:
    """A QDQ model with given integer activations: values are those, gradients go straight through."""

    def __init__(self, model, observed):
        self.graph, self.observed = model.graph, observed
        self.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.leaves = {}

    def forward(self):
        values, clamps, shapes = {}, {}, FloatGraph.__new__(FloatGraph)
        shapes.dtype = torch.float64
        for node in self.graph.node:
            name, output = node.input[0], node.output[0]
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "QuantizeLinear":
                values[output] = self.quantise(values.get(name), output, clamps.get(name))
            elif node.op_type == "DequantizeLinear":
                values[output] = values[name] if name in values else self.leaf(node, attributes)
            elif node.op_type in ("Relu", "Clip"):
                # Part of the clip mask: the quantised result says where it cut.
                bounds = [float(self.constants[bound]) for bound in node.input[1:3]] or [0.0, float("inf")]
                values[output], clamps[output] = values[name], bounds
            else:
                known = values | {i: torch.tensor(self.constants[i]) for i in node.input if i in self.constants}
                values[output] = shapes.node(node, attributes, [known.get(i) for i in node.input])
        return values[self.graph.output[0].name]

    def leaf(self, node, attributes):
        integers, scale = self.constants[node.input[0]].astype(np.float64), self.constants[node.input[1]]
        zero = self.constants[node.input[2]] if len(node.input) > 2 else np.zeros_like(scale)
        if scale.ndim:
            sides = [-1 if axis == attributes.get("axis", 1) else 1 for axis in range(integers.ndim)]
            scale, zero = scale.reshape(sides), zero.reshape(sides)
        real = torch.tensor(scale.astype(np.float64) * (integers - zero), requires_grad=True)
        self.leaves[node.input[0]] = real
        return real

    def quantise(self, real, name, clamp):
        tensor, scale, zero = self.observed[name]
        known = torch.tensor(scale * (tensor - zero))
        if real is None:  # The input.
            return known
        low, high = 0.0, 255.0
        if clamp:
            low, high = (min(max(np.rint(bound / scale) + zero, 0), 255) for bound in clamp)
        passes = torch.tensor((tensor > low) & (tensor < high))
        through = torch.where(passes, real, torch.zeros_like(real))
        return through + (known - through).detach()


def observed_tensors(folder, count):
    """Bytes of every tensor by name, as `[N, C, H, W]`, with scale and zero point in float64."""
    stored, found = np.fromfile(folder / "tensors.u8", np.uint8), {}
    for tensor in json.loads((folder / "tensors.json").read_text()):
        values = stored[tensor["offset"] : tensor["offset"] + tensor["length"]].astype(np.float64)
        shape = tensor["shape"]
        if tensor["layout"] == "channels_last":
            channels, *sides = shape
            values = np.moveaxis(values.reshape(count, *sides, channels), -1, 1)
        else:
            values = values.reshape(count, *shape)
        found[tensor["name"]] = (np.ascontiguousarray(values), float(np.float32(tensor["scale"])), tensor["zero_point"])
    return found


def retraining(network, activations, faults, pictures, folder):
    path, data, model_path = zoo(network, folder), folder / "pictures.npz", folder / "model.int8.onnx"
    random = np.random.default_rng(3)
    sides = [dim.dim_value for dim in onnx.load(path).graph.input[0].type.tensor_type.shape.dim[1:]]
    pixels = random.integers(0, 256, [pictures, *sides], dtype=np.uint8)
    np.savez(data, x=pixels, y=np.zeros(pictures, np.int64))
    # The zoo's seeded weights expect raw pixels for ResNet-8, numbers near 1 for the others.
    scale = 1.0 if network == "resnet8" else 1 / 128
    run(CHIPFIT, "quantize", path, "--data", data, "--activations", activations, "--scale", scale, "-o", model_path, "--force")
    labels = random.integers(0, 10, pictures).astype(np.uint8)
    (pixels.astype(np.float32) * np.float32(scale)).tofile(folder / "pictures.f32")
    labels.tofile(folder / "labels.u8")
    command = [EXAMPLES / "gradients", model_path, folder / "pictures.f32", folder / "labels.u8", folder / "out"]
    if faults:
        (folder / "faults.toml").write_text(FAULTS)
        command.append(folder / "faults.toml")
    run(*command)
    net = FakeQuantised(onnx.load(model_path), observed_tensors(folder / "out", pictures))
    logits = net.forward()
    loss = functional.cross_entropy(logits, torch.tensor(labels.astype(np.int64)))
    loss.backward()
    found_loss = json.loads((folder / "out/loss.json").read_text())["loss"]
    require(abs(found_loss - float(loss.detach())) <= 1e-5 * abs(found_loss), f"loss {found_loss}, PyTorch {loss}")
    stored, pairs = np.fromfile(folder / "out/gradients.f32", np.float32), {}
    dense = {node.input[1]: node for node in net.graph.node if node.op_type in ("Gemm", "MatMul")}
    producers = {node.output[0]: node for node in net.graph.node}
    transposed = {
        producers[name].input[0] for name, node in dense.items()
        if name in producers and not any(a.name == "transB" and a.i for a in node.attribute)
    }
    for parameter in json.loads((folder / "out/parameters.json").read_text()):
        name = parameter["name"]
        found = stored[parameter["offset"] : parameter["offset"] + parameter["length"]]
        expected = net.leaves[name].grad.numpy()
        if expected.ndim == 4:
            expected = np.moveaxis(expected, 1, -1)
        elif name in transposed:
            expected = expected.T
        pairs[name] = (found, expected.reshape(-1))
    require(len(pairs) == len(net.leaves), f"{len(pairs)} parameters, PyTorch has {len(net.leaves)}")
    return compare(pairs)


def main():
    tally = Tally()
    for network, pictures in (("lenet5", 9), ("resnet8", 9), ("mobilenet-fashion", 9), ("resnet18-cifar", 3)):
        with tempfile.TemporaryDirectory() as folder:
            tally.check(f"from scratch, {network}", from_scratch, network, pictures, Path(folder))
    for network in ("resnet8", "mobilenet-fashion", "lenet5"):
        for activations in ("uint8", "int8-asymmetric"):
            for faults in (False, True):
                name = f"retraining, {network}, {activations}, {'with' if faults else 'no'} faults"
                with tempfile.TemporaryDirectory() as folder:
                    tally.check(name, retraining, network, activations, faults, 8, Path(folder))
    tally.close()


if __name__ == "__main__":
    main()
