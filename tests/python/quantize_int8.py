"""`chipfit quantize` judged by ONNX Runtime: validity, fusion, accuracy.

Small networks of random weights, one for each operator and spelling, must pass the checker, keep a signal-to-noise ratio
of 20 dB against the float model on the calibration pictures, and, with uint8 activations, be fused: the optimised graph
holds the listed QLinear operators and no float Conv, Gemm or MatMul (ConvTranspose has no integer form there). Real
classifiers must keep their accuracy: ResNet-8 and mnist-conv lose less than one point on at least 2,000 test pictures,
SqueezeNet and EfficientNet-Lite0 at most two of the 20 pictures that they are calibrated on.
"""

import collections
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import oracle
from oracle import DATA, LONG, SHARED, Tally, checker_complaint, chipfit, require
from zoo_accuracy import cifar_samples, imagenet_samples, prepare

LEAST_SQNR_DB = 20.0
PICTURES, CHANNELS, SIDE = 32, 3, 16
FLOAT_PRODUCTS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


class Net:
    """A network under construction: layers name their outputs by themselves."""

    def __init__(self, opset=17, seed=0):
        self.opset, self.random = opset, np.random.default_rng(seed)
        self.nodes, self.constants = [], []

    def constant(self, array, dtype=np.float32):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def op(self, kind, *inputs, outputs=1, **attributes):
        names = [f"{kind.lower()}{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"n{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else names

    def weight(self, *shape, fan_in=None):
        fan_in = fan_in or int(np.prod(shape[1:]))
        # Channels of very different sizes, as trained networks have them.
        sizes = self.random.uniform(0.1, 2.0, (shape[0], *[1] * (len(shape) - 1)))
        return self.constant(self.random.normal(0, 1, shape) * sizes * np.sqrt(2 / fan_in))

    def conv(self, x, out, inputs, kernel=3, bias=True, group=1, **attributes):
        attributes.setdefault("pads", [kernel // 2] * 4)
        terms = [x, self.weight(out, inputs // group, kernel, kernel)]
        if bias:
            terms.append(self.constant(self.random.normal(0, 0.3, out)))
        return self.op("Conv", *terms, kernel_shape=[kernel] * 2, group=group, **attributes)

    def norm(self, x, channels):
        vectors = [self.random.uniform(0.5, 1.5, channels), *self.random.normal(0, 0.3, (2, channels)), self.random.uniform(0.5, 2, channels)]
        return self.op("BatchNormalization", x, *map(self.constant, vectors), epsilon=1e-3)

    def head(self, x, channels):
        flat = self.op("Flatten", self.op("GlobalAveragePool", x), axis=1)
        return self.op("Gemm", flat, self.weight(10, channels), self.constant(self.random.normal(0, 0.1, 10)), transB=1)

    def model(self, y, batch="N"):
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, CHANNELS, SIDE, SIDE])
        out = helper.make_tensor_value_info(y, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "net", [x], [out], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        inferred = onnx.shape_inference.infer_shapes(model)
        model.graph.output[0].CopyFrom(inferred.graph.output[0])
        return model


def plain(net):
    x = net.op("Relu", net.conv("x", 8, 3))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Relu", net.norm(net.conv(x, 12, 8, bias=False), 12))
    return net.head(x, 12)


def residual(net):
    x = net.op("Relu", net.norm(net.conv("x", 8, 3), 8))
    y = net.op("Relu", net.conv(x, 8, 8))
    y = net.norm(net.conv(y, 8, 8), 8)
    x = net.op("Relu", net.op("Add", y, x))
    z = net.conv(x, 8, 8, kernel=1, bias=False, pads=[0] * 4)
    return net.head(net.op("Add", x, z), 8)


def mobile(net):
    clip = lambda x: net.op("Clip", x, net.constant(0.0), net.constant(6.0))
    x = clip(net.norm(net.conv("x", 16, 3, strides=[2, 2], bias=False), 16))
    x = clip(net.norm(net.conv(x, 16, 16, group=16, bias=False), 16))
    x = net.norm(net.conv(x, 8, 16, kernel=1, pads=[0] * 4), 8)
    x = clip(net.conv(x, 16, 8, group=4, dilations=[2, 2], pads=[2] * 4))
    return net.head(x, 16)


def fire(net):
    x = net.op("Relu", net.conv("x", 8, 3))
    a = net.op("Relu", net.conv(x, 8, 8, kernel=1, pads=[0] * 4))
    b = net.op("Relu", net.conv(x, 8, 8))
    x = net.op("Concat", a, b, axis=1)
    x = net.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    return net.op("Softmax", net.head(net.op("Relu", net.conv(x, 8, 16)), 8), axis=-1)


def moves(net):
    x = net.op("Relu", net.conv("x", 16, 3))
    x = net.op("DepthToSpace", x, blocksize=2)
    x = net.op("Slice", x, net.constant([0], np.int64), net.constant([16], np.int64), net.constant([3], np.int64))
    x = net.op("Pad", x, net.constant([0, 0, 0, 1, 0, 0, 0, 1], np.int64))
    x = net.op("Transpose", x, perm=[0, 1, 3, 2])
    x = net.op("Resize", x, "", net.constant([1, 1, 2, 1]), mode="nearest")
    x = net.conv(x, 8, 4)
    x = net.op("Reshape", net.op("GlobalAveragePool", x), net.constant([0, -1], np.int64))
    return net.op("MatMul", x, net.weight(8, 10, fan_in=8))


def activations(net):
    x = net.op("LeakyRelu", net.conv("x", 8, 3), alpha=0.1)
    x = net.conv(x, 8, 8)
    x = net.op("Mul", x, net.op("Sigmoid", x))
    x = net.op("HardSwish", net.conv(x, 8, 8))
    x = net.op("Tanh", net.conv(x, 8, 8))
    return net.head(x, 8)


def products(net):
    x = net.op("Flatten", net.op("AveragePool", "x", kernel_shape=[4, 4], strides=[4, 4]), axis=1)
    x = net.op("Relu", net.op("Add", net.op("MatMul", x, net.weight(48, 20, fan_in=48)), net.constant(net.random.normal(0, 1, 20))))
    x = net.op("Gemm", x, net.weight(20, 16, fan_in=20), net.constant(net.random.normal(0, 1, (1, 16))), alpha=0.5, beta=2.0)
    turned = net.op("Transpose", net.op("Relu", x), perm=[1, 0])
    x = net.op("Gemm", turned, net.weight(10, 16), net.constant(0.25), transA=1, transB=1)
    return x


def attention(net):
    x = net.op("Reshape", net.conv("x", 8, 3), net.constant([0, 8, -1], np.int64))
    scores = net.op("MatMul", x, net.op("Transpose", x, perm=[0, 2, 1]))
    x = net.op("MatMul", net.op("Div", scores, net.constant(16.0)), x)
    x = net.op("Reshape", x, net.constant([0, 8, SIDE, SIDE], np.int64))
    return net.head(net.conv(x, 8, 8), 8)


def transposed(net):
    x = net.op("Relu", net.conv("x", 8, 3, strides=[2, 2]))
    terms = [x, net.weight(8, 4, 4, 4, fan_in=32), net.constant(net.random.normal(0, 0.3, 8))]
    x = net.norm(net.op("ConvTranspose", *terms, group=2, strides=[2, 2], pads=[1] * 4), 8)
    return net.head(net.conv(net.op("Relu", x), 8, 8), 8)


def preactivation(net):
    x = net.conv("x", 8, 3)
    y = net.conv(net.op("Relu", net.norm(x, 8)), 8, 8)
    x = net.op("Add", x, y)
    return net.head(net.op("Relu", net.norm(x, 8)), 8)


def spelling(net):
    x = net.op("Sub", "x", net.constant(np.full((1, 3, 1, 1), 0.2)))
    x = net.op("Div", x, net.constant(np.full((3, 1, 1), 0.7)))
    weight = net.op("Transpose", net.op("Constant", value=numpy_helper.from_array(net.random.normal(0, 0.3, (3, 3, 3, 8)).astype(np.float32))), perm=[3, 2, 0, 1])
    x = net.op("Conv", x, weight, pads=[1] * 4)
    x = net.op("Add", x, net.constant(net.random.normal(0, 0.3, (8, 1, 1))))
    x = net.op("Mul", x, net.constant(net.random.uniform(0.5, 2, (1, 8, 1, 1))))
    x = net.op("Dropout", net.op("Identity", net.op("Relu", x)))
    x = net.conv(x, 8, 8)
    x = net.op("ReduceMean", x, axes=[2, 3], keepdims=0)
    return net.op("Gemm", x, net.weight(10, 8), transB=1)


def operands(net):
    x = net.conv("x", 8, 3)
    x = net.op("Add", x, net.constant(net.random.normal(0, 0.5, (8, SIDE, SIDE))))
    x = net.op("Mul", net.constant(net.random.uniform(0.5, 1.5, (1, 1, SIDE, SIDE))), x)
    x = net.op("Concat", x, "x", axis=1)
    a, b = net.op("Split", x, net.constant([4, 7], np.int64), outputs=2, axis=1)
    x = net.op("Concat", net.conv(a, 4, 4), net.conv(b, 4, 7), axis=1)
    return net.head(net.op("Elu", x), 8)


def opset8(net):
    x = net.op("Clip", net.op("Conv", "x", net.weight(8, 3, 3, 3), auto_pad="SAME_UPPER", kernel_shape=[3, 3]), min=0.0, max=1.0)
    x = net.op("Pad", x, pads=[0, 0, 1, 1, 0, 0, 1, 1])
    x = net.op("Upsample", x, scales=[1.0, 1.0, 2.0, 2.0], mode="nearest") if net.opset < 9 else x
    x = net.op("Slice", x, axes=[2, 3], starts=[1, 1], ends=[17, 17])
    x = net.op("Squeeze", net.op("GlobalAveragePool", net.op("Relu", net.conv(x, 8, 8))), axes=[2, 3])
    return net.op("Softmax", net.op("Gemm", x, net.weight(10, 8), net.constant(np.zeros(10)), transB=1))


def opset11(net):
    x = net.op("Relu", net.norm(net.conv("x", 8, 3), 8))
    x = net.op("Unsqueeze", net.op("Squeeze", net.op("GlobalAveragePool", x), axes=[2]), axes=[2])
    return net.op("LogSoftmax", net.conv(x, 10, 8, kernel=1, pads=[0] * 4))


# Name, builder, operator set, what ONNX Runtime must have fused.
NETWORKS = [
    ("plain", plain, 17, {"QLinearConv": 2, "QLinearGlobalAveragePool": 1, "QGemm": 1}),
    ("residual", residual, 17, {"QLinearConv": 4, "QLinearAdd": 2}),
    ("mobile", mobile, 13, {"QLinearConv": 4}),
    ("fire", fire, 17, {"QLinearConv": 4, "QLinearConcat": 1, "QLinearAveragePool": 1}),
    ("moves", moves, 17, {"QLinearConv": 2, "QLinearMatMul": 1}),
    ("activations", activations, 17, {"QLinearConv": 4, "QLinearLeakyRelu": 1, "QLinearSigmoid": 1, "QLinearMul": 1}),
    ("products", products, 17, {"QGemm": 3}),
    ("attention", attention, 17, {"QLinearConv": 2, "QLinearMatMul": 2, "QLinearMul": 1}),
    ("transposed", transposed, 17, {"QLinearConv": 2, "ConvTranspose": 1}),
    ("preactivation", preactivation, 17, {"QLinearConv": 4, "QLinearAdd": 1}),
    ("spelling", spelling, 13, {"QLinearConv": 2, "QLinearAdd": 1, "QLinearMul": 1, "QGemm": 1}),
    ("operands", operands, 17, {"QLinearConv": 3, "QLinearAdd": 1, "QLinearMul": 1}),
    ("opset 8", opset8, 8, {"QLinearConv": 2}),
    ("opset 11", opset11, 11, {"QLinearConv": 2}),
    ("opset 22", plain, 22, {"QLinearConv": 2, "QGemm": 1}),
]


def session(path, optimised=None):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    if oracle.SATURATES:
        options.add_session_config_entry("session.x64quantprecision", "1")
    if optimised:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def results(path, x, optimised=None):
    runtime = session(path, optimised)
    (source,) = runtime.get_inputs()
    batch = source.shape[0] if isinstance(source.shape[0], int) else 50
    parts = [runtime.run(None, {source.name: x[i : i + batch]})[0] for i in range(0, len(x), batch)]
    return np.concatenate(parts)


def sqnr(exact, got):
    exact, got = exact.astype(np.float64), got.astype(np.float64)
    return 10 * np.log10(np.sum(exact**2) / max(np.sum((exact - got) ** 2), 1e-300))


def operators(path):
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


def quantise(folder, model, data, *flags):
    output = folder / "model.int8.onnx"
    report = chipfit("quantize", model, "--data", data, "-o", output, "--force", *flags)
    complaint = checker_complaint(output)
    require(complaint is None, f"checker: {complaint}")
    return output, report


def check_network(build, opset, fused, flags, needs_fusion):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        net = Net(opset)
        model = net.model(build(net))
        onnx.save(model, folder / "model.onnx")
        x = np.random.default_rng(1).normal(0, 1, (PICTURES, CHANNELS, SIDE, SIDE)).astype(np.float32)
        np.savez(folder / "data.npz", x=x, y=np.zeros(PICTURES, np.int64))
        output, report = quantise(folder, folder / "model.onnx", folder / "data.npz", *flags)
        exact = results(folder / "model.onnx", x)
        got = results(output, x, folder / "optimised.onnx")
        ratio = sqnr(exact, got)
        require(ratio >= LEAST_SQNR_DB, f"{ratio:.1f} dB of signal to noise")
        if needs_fusion:
            have = operators(folder / "optimised.onnx")
            missing = {op: n for op, n in fused.items() if have[op] != n}
            require(not missing, f"expected {missing}, the optimised graph has {dict(have)}")
            left = [op for op in FLOAT_PRODUCTS if have[op]]
            require(not left, f"in float: {left} of {dict(have)}")
        return f"{ratio:.1f} dB"


def check_deterministic():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        net = Net()
        onnx.save(net.model(residual(net)), folder / "model.onnx")
        x = np.random.default_rng(2).normal(0, 1, (PICTURES, CHANNELS, SIDE, SIDE)).astype(np.float32)
        np.savez(folder / "data.npz", x=x, y=np.zeros(PICTURES, np.int64))
        outputs = set()
        for _ in range(3):
            output, _ = quantise(folder, folder / "model.onnx", folder / "data.npz", "--method", "entropy", "--pictures", 20)
            outputs.add(output.read_bytes())
        require(len(outputs) == 1, "the same command wrote different files")


def check_refusals():
    """A quantised model and one with control flow are refused, and no file is left."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        net = Net()
        onnx.save(net.model(plain(net)), folder / "model.onnx")
        np.savez(folder / "data.npz", x=np.zeros((2, CHANNELS, SIDE, SIDE), np.float32) + 0.5, y=np.zeros(2, np.int64))
        output, _ = quantise(folder, folder / "model.onnx", folder / "data.npz")
        branch = helper.make_graph([helper.make_node("Identity", ["x"], ["b"])], "b", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)])
        net = Net()
        x = net.op("If", net.constant(True, bool), then_branch=branch, else_branch=branch)
        onnx.save(net.model(net.conv(x, 8, 3)), folder / "flow.onnx")
        for model, word in [(output, "already quantised"), (folder / "flow.onnx", "control flow")]:
            target = folder / "again.onnx"
            command = [oracle.CHIPFIT, "quantize", model, "--data", folder / "data.npz", "-o", target]
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
            require(done.returncode == 1 and word in done.stderr, f"status {done.returncode}: {done.stderr}")
            require(not target.exists(), "a file was left")


def accuracy(path, x, y):
    scores = results(path, x)
    return scores.argmax(1) == y, scores


def check_accuracy(model, data, x, y, most_lost, flags, optimised_conv=True):
    """Quantises and compares the number of recognised pictures; at most `most_lost` (a fraction) may be lost."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        output, report = quantise(folder, model, data, *flags)
        right, exact = accuracy(model, x, y)
        kept, _ = accuracy(output, x, y)
        results(output, x[:1], folder / "optimised.onnx")
        have = operators(folder / "optimised.onnx")
        n_weights = len(report["weights"])
        if optimised_conv:
            fused = have["QLinearConv"] + have["QGemm"] + have["QLinearMatMul"]
            require(fused == n_weights and not any(have[op] for op in FLOAT_PRODUCTS), f"{fused} of {n_weights} layers fused: {dict(have)}")
        lost = right.mean() - kept.mean()
        require(lost <= most_lost, f"{right.sum()} of {len(y)} became {kept.sum()}")
        agreement = (exact.argmax(1) == results(output, x).argmax(1)).mean()
        return f"{100 * right.mean():.2f}% -> {100 * kept.mean():.2f}% of {len(y)}, agreement {100 * agreement:.2f}%"


def idx(path):
    data = path.read_bytes()
    dims = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(dims)).reshape(dims)


def real(tally):
    resnet8, cifar = SHARED / "models/mlperf-tiny-resnet8-cifar10.onnx", SHARED / "data/cifar10-jpeg.tar"
    if resnet8.exists() and cifar.exists():
        pairs = [(prepare("resnet8", picture), label) for picture, label in cifar_samples(cifar, 10_000 if LONG else 2_500)]
        x, y = np.stack([p for p, _ in pairs]), np.array([label for _, label in pairs])
        settings = [[], ["--method", "percentile"], ["--method", "entropy"], ["--weights", "per-tensor"], ["--power-of-two"]]
        for flags in settings:
            # Coarser steps are the user's choice; these settings may lose more.
            limit = 0.03 if "--power-of-two" in flags else 0.01
            tally.check(" ".join(["ResNet-8", *flags]), check_accuracy, resnet8, cifar, x, y, limit, flags)
        for kind in ["int8", "int8-asymmetric"]:
            tally.check(f"ResNet-8 {kind}", check_accuracy, resnet8, cifar, x, y, 0.02, ["--activations", kind], False)
    else:
        tally.skip("ResNet-8", "no shared folder")

    mnist = DATA / "mnist"
    if (DATA / "mnist-conv.onnx").exists() and mnist.exists():
        x, y = idx(mnist / "t10k-images-idx3-ubyte")[:, None].astype(np.float32), idx(mnist / "t10k-labels-idx1-ubyte")
        tally.check("mnist-conv", check_accuracy, DATA / "mnist-conv.onnx", mnist, x, y, 0.01, [])
    else:
        tally.skip("mnist-conv", "not fetched")

    networks = [
        ("squeezenet1.1", "squeezenet1.1.pkl", ["--resize", "crop:256", "--color", "bgr", "--mean", "103.939,116.779,123.68"]),
        ("efficientnet-lite0", "efficientnet-lite0.pth", ["--resize", "crop:256", "--filter", "bicubic", "--mean", "127", "--std", "128"]),
    ]
    for network, weights, flags in networks:
        if not (DATA / weights).exists() or not (DATA / "foolbox").exists():
            tally.skip(network, "not fetched")
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            command = [oracle.CHIPFIT, "zoo", network, "--weights", DATA / weights, "-o", folder / "model.onnx", "--batch", "dynamic"]
            subprocess.run([str(part) for part in command], check=True, capture_output=True)
            (folder / "pictures").mkdir()
            for path in (DATA / "foolbox").glob("imagenet_*.jpg"):
                shutil.copy(path, folder / "pictures")
            pairs = [(prepare(network, picture), label) for picture, label in imagenet_samples(folder / "pictures")]
            x, y = np.stack([p for p, _ in pairs]).astype(np.float32), np.array([label for _, label in pairs])
            tally.check(network, check_accuracy, folder / "model.onnx", folder / "pictures", x, y, 0.1, flags)


def main():
    tally = Tally()
    for name, build, opset, fused in NETWORKS:
        tally.check(name, check_network, build, opset, fused, [], True)
        for flags in [["--activations", "int8"], ["--activations", "int8-asymmetric"], ["--weights", "per-tensor"], ["--method", "percentile", "--percentile", "99.999"]]:
            tally.check(f"{name} {' '.join(flags)}", check_network, build, opset, fused, flags, flags[0] == "--weights")
    tally.check("the same bytes", check_deterministic)
    tally.check("refusals", check_refusals)
    real(tally)
    tally.close()


if __name__ == "__main__":
    main()
