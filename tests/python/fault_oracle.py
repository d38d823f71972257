"""The fault model, written a second time: plain numpy, from docs/fault-model.md alone, against `chipfit evaluate`.

A QDQ ResNet-8 is run picture by picture in integers. Under `mul` + `acc` flips every product and every partial sum of a
struck output is formed, its word's bit is flipped where it stands, and the sum goes on from there. Draws come from numpy, so
single pictures differ from the tool's; what must agree, within stated bounds, is what the two processors do on average:
without faults every logit, with faults the mean number of flips, the share of outputs changed in every layer, and accuracy.

"""

import json
import math
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import numpy_helper

import oracle

RATE = 1e-6
# Pictures that numpy computes, and pictures of the tool's accuracy.
IMAGES, PICTURES = 40, 400


class Network:
    """The integer network behind a QDQ file of Conv, Add, GlobalAveragePool, Flatten and Gemm."""

    def __init__(self, path):
        graph = onnx.load(path).graph
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.nodes = list(graph.node)
        self.input = graph.input[0].name
        # Float tensor to the integer tensor that it is the dequantised value of.
        self.integer_of = {n.output[0]: n.input for n in self.nodes if n.op_type == "DequantizeLinear"}
        self.quantiser_of = {n.input[0]: n for n in self.nodes if n.op_type == "QuantizeLinear"}

    def scale(self, name):
        return np.float32(self.constants[name])

    def operand(self, values, name):
        """Integer minus zero point, and scale."""
        integer, scale, zero = self.integer_of[name]
        if integer in values:
            return values[integer].astype(np.int32) - int(self.constants[zero]), np.float32(self.constants[scale])
        oracle.require(not np.any(self.constants[zero]), f"{name}: a weight zero point other than 0")
        return self.constants[integer].astype(np.int32), self.constants[scale].astype(np.float32)

    def run(self, picture, random=None, rate=0.0):
        """All integer tensors of one picture [C, H, W]; with `random`, faults at `rate`. Returns them and the flips."""
        values, flips = {}, 0
        for node in self.nodes:
            if node.op_type == "DequantizeLinear":
                continue
            if node.op_type == "QuantizeLinear":
                name, scale, zero = node.input
                if name == self.input:
                    steps = np.rint(picture.astype(np.float32) / self.scale(scale)) + self.constants[zero]
                    values[node.output[0]] = np.clip(steps, 0, 255).astype(np.uint8)
                continue
            quantiser = self.quantiser_of[node.output[0]]
            out, y_scale, y_zero = quantiser.output[0], self.scale(quantiser.input[1]), int(self.constants[quantiser.input[2]])
            if node.op_type in ("Conv", "Gemm"):
                rows, weights, bias, multiplier, shape = self.product(values, node, y_scale)
                sums, struck = self.accumulate(rows, weights, bias, random, rate)
                flips += struck
                bytes_ = np.clip(np.rint(sums.astype(np.float32) * multiplier) + y_zero, 0, 255).astype(np.uint8)
                values[out] = bytes_.T.reshape(shape)
            elif node.op_type == "Add":
                parts = [self.operand(values, name) for name in node.input]
                total = sum(x.astype(np.float64) * scale for x, scale in parts)
                values[out] = np.clip(np.rint(total / y_scale) + y_zero, 0, 255).astype(np.uint8)
            elif node.op_type == "GlobalAveragePool":
                x, scale = self.operand(values, node.input[0])
                mean = x.astype(np.float64).mean(axis=(-2, -1), keepdims=True) * scale
                values[out] = np.clip(np.rint(mean / y_scale) + y_zero, 0, 255).astype(np.uint8)
            elif node.op_type == "Flatten":
                values[out] = values[self.integer_of[node.input[0]][0]].reshape(-1)
            else:
                raise SystemExit(f"{node.op_type}: not in this oracle")
        return values, flips

    def product(self, values, node, y_scale):
        """A Conv or Gemm as rows [outputs, K] times weights [channels, K], K in the contract's order."""
        x, x_scale = self.operand(values, node.input[0])
        w, w_scale = self.operand(values, node.input[1])
        bias = self.constants[self.integer_of[node.input[2]][0]].astype(np.int64)
        multiplier = (x_scale * w_scale.astype(np.float32)) / y_scale
        if node.op_type == "Gemm":
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            return x[None], w if transposed else w.T, bias, multiplier, [w.shape[0] if transposed else w.shape[1]]
        at = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        stride, pads = at.get("strides", [1, 1]), at.get("pads", [0, 0, 0, 0])
        padded = np.pad(x, [(0, 0), (pads[0], pads[2]), (pads[1], pads[3])])
        windows = sliding_window_view(padded, w.shape[2:], axis=(1, 2))[:, :: stride[0], :: stride[1]]
        rows = windows.transpose(1, 2, 3, 4, 0)
        height, width = rows.shape[:2]
        weights = w.transpose(0, 2, 3, 1).reshape(w.shape[0], -1)
        return rows.reshape(height * width, -1), weights, bias, multiplier, [w.shape[0], height, width]

    @staticmethod
    def accumulate(rows, weights, bias, random, rate):
        """Sums [outputs, channels]; struck outputs again, product by product."""
        sums = rows.astype(np.int64) @ weights.T.astype(np.int64) + bias
        if random is None:
            return sums, 0
        outputs, products = len(rows), weights.shape[1]
        channels = len(weights)
        macs = outputs * channels * products
        strikes = {}
        total = 0
        for site, bits in (("mul", 16), ("acc", 32)):
            # Drawn again where a position came twice, which is rare: without replacement.
            drawn = random.integers(0, macs * bits, random.binomial(macs * bits, rate))
            while len(np.unique(drawn)) < len(drawn):
                drawn = random.integers(0, macs * bits, len(drawn))
            for position in drawn:
                word, bit = divmod(int(position), bits)
                output, k = divmod(word, products)
                strikes.setdefault(output, {}).setdefault((k, site), []).append(bit)
                total += 1
        for output, hits in strikes.items():
            pixel, channel = divmod(output, channels)
            accumulator = int(bias[channel])
            for k in range(products):
                product = int(rows[pixel, k]) * int(weights[channel, k])
                for bit in hits.get((k, "mul"), []):
                    product = signed(product ^ (1 << bit), 16)
                accumulator = signed(accumulator + product, 32)
                for bit in hits.get((k, "acc"), []):
                    accumulator = signed(accumulator ^ (1 << bit), 32)
            sums[pixel, channel] = accumulator
        return sums, total


def signed(value, bits):
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def evaluate(model, data, *flags):
    command = [oracle.CHIPFIT, "evaluate", model, "--data", data, "--json", *flags]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    oracle.require(done.returncode == 0, done.stderr.strip())
    return json.loads(done.stdout)


class Comparison:
    """Both processors on the same pictures, without and with faults."""

    def __init__(self, model, data, folder):
        faults = folder / "faults.toml"
        faults.write_text(f'[[fault]]\nsites = ["mul", "acc"]\nkind = "flip"\nber = {RATE}\nlayers = "*"\n')
        dump = ["--dump", "all", "--dump-images", IMAGES, "-o"]
        evaluate(model, data, *dump, folder / "clean.npz")
        self.report = evaluate(model, data, "--faults", faults, *dump, folder / "faulty.npz")
        self.clean, self.faulty = dict(np.load(folder / "clean.npz")), dict(np.load(folder / "faulty.npz"))
        self.names = [name for name in self.clean if not name.startswith("__")]
        network, random = Network(model), np.random.default_rng(1)
        self.values, self.struck, self.flips, self.right = [], [], [], 0
        for picture, label in zip(self.clean["__input__"], self.clean["__labels__"]):
            self.values.append(network.run(picture)[0])
            struck, flips = network.run(picture, random, RATE)
            self.struck.append(struck)
            self.flips.append(flips)
            self.right += int(struck[self.names[-1]].argmax() == label)

    def without_faults(self):
        far = max(
            int(np.abs(values[name].astype(int).ravel() - self.clean[name][row].astype(int).ravel()).max())
            for row, values in enumerate(self.values) for name in self.names
        )
        # Sums and means are formed in float64 here; a tie of the tool's fp32 formula may fall the other way.
        oracle.require(far <= 1, f"{far} steps apart")
        return f"{IMAGES} pictures, {len(self.names)} integer tensors, at most {far} step(s) apart"

    def number_of_flips(self):
        expected, mean = self.report["faults"]["expected_total"], float(np.mean(self.flips))
        oracle.require(abs(mean - expected) < 5 * math.sqrt(expected / IMAGES), f"numpy {mean}, expected {expected}")
        return f"numpy {mean:.1f} an inference, expected {expected:.1f}"

    def changed_words(self, name):
        ours = np.array([np.mean(a[name].ravel() != b[name].ravel()) for a, b in zip(self.struck, self.values)])
        theirs = (self.faulty[name] != self.clean[name]).reshape(IMAGES, -1).mean(axis=1)
        # Changes come in clusters, so pictures are the sample, not words.
        bound = 5 * math.sqrt((ours.var() + theirs.var()) / IMAGES) + 2 / self.clean[name].size
        oracle.require(abs(ours.mean() - theirs.mean()) <= bound, f"numpy {ours.mean()}, chipfit {theirs.mean()}, bound {bound}")
        return f"numpy {ours.mean():.4f}, chipfit {theirs.mean():.4f}, bound {bound:.4f}"

    def accuracy(self):
        ours, theirs, pictures = self.right / IMAGES, self.report["top1"]["value"], self.report["pictures"]
        bound = 4 * math.sqrt(0.25 / IMAGES + 0.25 / pictures)
        oracle.require(abs(ours - theirs) <= bound, f"numpy {ours}, chipfit {theirs}, bound {bound}")
        return f"numpy {ours:.3f} of {IMAGES}, chipfit {theirs:.3f} of {pictures}, bound {bound:.3f}"


def main():
    tally = oracle.Tally()
    source, archive = oracle.SHARED / "models/mlperf-tiny-resnet8-cifar10.onnx", oracle.SHARED / "data/cifar10-jpeg.tar"
    if not (source.exists() and archive.exists()):
        tally.skip("fault model", "needs models/ and data/ of CHIPFIT_SHARED")
        return tally.close()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model, data = folder / "resnet8.int8.onnx", folder / "pictures.npz"
        # Pictures without a decoder: the tool's own, read back from a trace of the float input.
        command = [oracle.CHIPFIT, "quantize", source, "--data", archive, "--pictures", 200, "-o", model]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        evaluate(model, archive, "--pictures", PICTURES, "--dump", "all", "--dump-images", PICTURES, "-o", folder / "all.npz")
        trace = np.load(folder / "all.npz")
        order = np.random.default_rng(0).permutation(PICTURES)
        np.savez(data, x=trace["__input__"].astype(np.uint8)[order], y=trace["__labels__"][order])
        comparison = Comparison(model, data, folder)
        tally.check("without faults", comparison.without_faults)
        tally.check("number of flips", comparison.number_of_flips)
        for name in comparison.names[1:]:
            tally.check(f"changed words of {name}", comparison.changed_words, name)
        tally.check("top-1 under faults", comparison.accuracy)
    tally.close()


if __name__ == "__main__":
    main()
