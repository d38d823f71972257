"""Every integer tensor of the processor against ONNX Runtime's, fault-free.

uint8 activations, which ONNX Runtime computes in integers (default optimisation): zero differences. int8 activations,
which it computes in float on x86: every operator for itself, on ONNX Runtime's own inputs, at most one step apart and
only where the float value lies within 1e-3 of a tie.

Models: small random graphs, one operator each (integer_graphs.py); ResNet-8 by ONNX Runtime's own tool in many
settings; SqueezeNet and EfficientNet-Lite0 by that tool, and by `chipfit quantize`, on real pictures.

The processor's tensors come from `chipfit evaluate --dump all` (the simulator) where the input is a picture, else from
CHIPFIT_DUMP (the example `dump` of chipfit-npu, built for release: the naive twin).
"""

import collections
import io
import itertools
import logging
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from integer_graphs import BUILDERS, Graph
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from oracle import CHIPFIT, DATA, LONG, ROOT, SATURATES, SHARED, Failure, Tally, chipfit, require, zoo
from PIL import Image
from zoo_accuracy import imagenet_samples, prepare

DUMP = os.environ.get("CHIPFIT_DUMP", str(ROOT / "target/release/examples/dump"))
# Farthest from a tie (in output steps) at which float arithmetic may round the other way.
NEAR_TIE = 1e-3
TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
# Operators that ONNX Runtime fuses with their Q/DQ nodes when activations are uint8, and what they become.
FUSED = {"Conv": "QLinearConv", "Add": "QLinearAdd", "Concat": "QLinearConcat", "GlobalAveragePool": "QLinearGlobalAveragePool"}


def processor_trace(model, pictures, work):
    """The processor's integer tensors by name: [pictures, *shape]."""
    # An array whose last axis could be channels, too, is read as channels last.
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3) or pictures.shape[3] in (1, 3):
        pictures.astype("<f4").tofile(work / "pictures.f32")
        done = subprocess.run([DUMP, model, work / "pictures.f32", work / "trace"], capture_output=True, text=True)
        require(done.returncode == 0, f"the processor refuses it: {done.stderr.strip()}")
        tensors = {}
        for line in (work / "trace/index.tsv").read_text().splitlines():
            name, file, dtype, shape = line.split("\t")
            shape = [int(length) for length in shape.split(",") if length]
            tensors[name] = np.fromfile(work / "trace" / file, dtype).reshape(shape)
        return tensors
    np.savez(work / "pictures.npz", x=pictures.astype(np.float32), y=np.zeros(len(pictures), np.int64))
    flags = ["--dump", "all", "--dump-images", len(pictures), "-o", work / "trace.npz", "--force"]
    chipfit("evaluate", model, "--data", work / "pictures.npz", *flags)
    with np.load(work / "trace.npz") as trace:
        return dict(trace)


def activations(model):
    """The QuantizeLinear nodes of activations."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in constants]


def exposed(model, extra=()):
    """The model with its QuantizeLinear outputs (and some float values) among its outputs."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    present = {value.name for value in model.graph.output}
    for node in activations(model):
        if node.output[0] not in present:
            model.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], types[node.input[2]], None))
    for name in extra:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return model


def runtime_trace(model, pictures, work, extra=()):
    """ONNX Runtime's integer tensors by name, and its optimised graph's operators, counted."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(work / "optimised.onnx")
    if SATURATES:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(exposed(model, extra).SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    source = session.get_inputs()[0]
    batch = source.shape[0] if isinstance(source.shape[0], int) else len(pictures)
    parts = [session.run(names, {source.name: pictures[at : at + batch]}) for at in range(0, len(pictures), batch)]
    operators = collections.Counter(node.op_type for node in onnx.load(work / "optimised.onnx").graph.node)
    return {name: np.concatenate([part[at] for part in parts]) for at, name in enumerate(names)}, operators


def differences(model, path, pictures, work):
    """Elements compared, tensors compared, and per differing tensor the places, ours and theirs."""
    theirs, operators = runtime_trace(model, pictures, work)
    ours = processor_trace(path, pictures, work)
    compared, apart = [0, 0], {}
    for node in activations(model):
        name = node.output[0]
        if name not in ours:
            continue
        require(ours[name].shape == theirs[name].shape, f"'{name}' has shape {ours[name].shape}, ONNX Runtime's {theirs[name].shape}")
        require(ours[name].dtype == theirs[name].dtype, f"'{name}' is {ours[name].dtype}, ONNX Runtime's {theirs[name].dtype}")
        compared = [compared[0] + theirs[name].size, compared[1] + 1]
        places = np.nonzero(ours[name] != theirs[name])
        if len(places[0]):
            apart[name] = (places, ours[name][places].astype(int), theirs[name][places].astype(int))
    require(compared[1] >= 2, "fewer than two tensors could be compared")
    return compared, apart, operators


def told(apart):
    return ", ".join(f"'{name}': {len(a)} elements, up to {np.abs(a - b).max()} steps" for name, (_, a, b) in apart.items())


def identical(model, path, pictures, work, fused=()):
    """uint8: no difference at all; the operators `fused` all run in integers."""
    compared, apart, operators = differences(model, path, pictures, work)
    require(not apart, f"{told(apart)}, of {compared[0]}")
    counts = collections.Counter(node.op_type for node in model.graph.node)
    for op in fused:
        require(operators[FUSED[op]] == counts[op], f"ONNX Runtime runs {operators[FUSED[op]]} of {counts[op]} {op} in integers")
    return f"{compared[1]} tensors, {compared[0]} elements equal"


def near_ties(model, path, pictures, work):
    """int8: differences of one step, where the float value is nearly a tie. For one operator on equal inputs.

    Returns tensors, elements and near ties that came out differently."""
    compared, apart, _ = differences(model, path, pictures, work)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    count = 0
    for node in activations(model):
        name = node.output[0]
        if name not in apart:
            continue
        places, ours, theirs = apart[name]
        require(np.abs(ours - theirs).max() <= 1, f"{told(apart)}, of {compared[0]}")
        real = runtime_trace(model, pictures, work, [node.input[0]])[0][node.input[0]][places].astype(np.float64)
        steps = real / np.float64(constants[node.input[1]])
        distance = np.abs(steps - np.floor(steps) - 0.5)
        require(distance.max() <= NEAR_TIE, f"'{name}': a difference {distance.max()} steps away from a tie")
        count += len(ours)
    return compared[1], compared[0], count


def alone(model, quantize):
    """The operators between the last integer tensors and one QuantizeLinear, as a model of its own for each input.

    Returns the model and the integer tensors that it reads; None where there are several."""
    made = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes, waiting, sources = [], [quantize.input[0]], {}
    while waiting:
        name = waiting.pop()
        if name in constants or name not in made or any(name in node.output for node in nodes):
            continue
        node = made[name]
        if node.op_type == "DequantizeLinear" and node.input[0] not in constants:
            sources[node.input[0]] = node
        nodes.append(node)
        if node.op_type != "DequantizeLinear" or node.input[0] in constants:
            waiting.extend(node.input)
    if len(sources) != 1:
        return None
    ((source, reader),) = sources.items()
    first = onnx.helper.make_node("QuantizeLinear", ["picture", *reader.input[1:]], [source], name="first")
    last = onnx.helper.make_node("DequantizeLinear", [quantize.output[0], *quantize.input[1:]], ["result"], name="last")
    order = [node for node in model.graph.node if node in nodes]
    used = {name for node in [first, *order, quantize] for name in node.input}
    held = [tensor for name, tensor in constants.items() if name in used]
    return source, reader, [first, *order, quantize, last], held


def operators_alone(model, pictures, work):
    """int8: every operator with one activation, on ONNX Runtime's own inputs."""
    theirs, _ = runtime_trace(model, pictures, work)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    checked, elements, ties = 0, 0, 0
    for quantize in activations(model):
        part = alone(model, quantize)
        if part is None or part[0] not in theirs:
            continue
        source, reader, nodes, held = part
        given = (theirs[source].astype(np.int64) - int(constants[reader.input[2]])) * np.float64(constants[reader.input[1]])
        given = given.astype(np.float32)
        shape = ["N", *given.shape[1:]]
        graph = onnx.helper.make_graph(
            nodes,
            "alone",
            [onnx.helper.make_tensor_value_info("picture", onnx.TensorProto.FLOAT, shape)],
            [onnx.helper.make_tensor_value_info("result", onnx.TensorProto.FLOAT, None)],
            held,
        )
        single = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
        single = onnx.shape_inference.infer_shapes(single)
        onnx.save(single, work / "alone.onnx")
        _, more, found = near_ties(single, work / "alone.onnx", given, work)
        checked, elements, ties = checked + 1, elements + more, ties + found
    require(checked > 0, "no operator could be taken alone")
    return f"{checked} operators alone, {elements} elements, {ties} near ties apart"


class Calibration(CalibrationDataReader):
    def __init__(self, name, pictures):
        self.feeds = iter([{name: picture[None]} for picture in pictures])

    def get_next(self):
        return next(self.feeds, None)


def prepared(source, target):
    """A float model after the tool's own preparation, which folds batch normalisations."""
    quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
    return target


def quantised_by_tool(source, target, pictures, activation, **settings):
    """A model quantised by ONNX Runtime's tool."""
    name = onnx.load(source).graph.input[0].name
    logging.disable(logging.WARNING)
    try:
        quantize_static(
            str(source),
            str(target),
            Calibration(name, pictures),
            quant_format=QuantFormat.QDQ,
            activation_type=TYPES[activation],
            **settings,
        )
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(target)


def random_graph(work, kind, name, seed):
    graph = Graph(np.random.default_rng([seed, sum(map(ord, name))]), kind)
    model = graph.model(BUILDERS[name](graph))
    path = work / "random.onnx"
    onnx.save(model, path)
    if kind == "uint8":
        identical(model, path, graph.picture(), work)
        return 0
    return near_ties(model, path, graph.picture(), work)[2]


def random_graphs(work, kind, name, seeds):
    ties = 0
    for seed in range(seeds):
        try:
            ties += random_graph(work, kind, name, seed)
        except Failure as failure:
            raise Failure(f"seed {seed}: {failure}") from failure
    return f"{seeds} graphs, {ties} near ties apart"


def cifar(count):
    """Test pictures of CIFAR-10, spread over the classes, as ResNet-8 takes them."""
    archive = SHARED / "data/cifar10-jpeg.tar"
    if not archive.exists():
        return None
    with tarfile.open(archive) as tar:
        members = sorted((m for m in tar if m.isfile() and "test/" in m.name), key=lambda m: m.name)
        chosen = members[:: max(1, len(members) // count)][:count]
        pictures = [Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB") for member in chosen]
    return np.stack([np.asarray(picture, np.float32).transpose(2, 0, 1) for picture in pictures])


def resnet_settings():
    """Settings of ONNX Runtime's tool: activation type, and its arguments."""
    for activation, per_channel in itertools.product(("uint8", "int8"), (True, False)):
        yield activation, {"per_channel": per_channel, "weight_type": QuantType.QInt8}
    yield "uint8", {"per_channel": True, "weight_type": QuantType.QInt8, "reduce_range": True}
    yield "uint8", {"per_channel": False, "weight_type": QuantType.QUInt8}
    yield "uint8", {"weight_type": QuantType.QInt8, "extra_options": {"WeightSymmetric": False}}
    yield "int8", {"weight_type": QuantType.QInt8, "extra_options": {"ActivationSymmetric": True}}
    yield "uint8", {"weight_type": QuantType.QInt8, "extra_options": {"DedicatedQDQPair": True}}


def resnet(work, source, pictures, activation, settings):
    path = work / "resnet.onnx"
    model = quantised_by_tool(source, path, pictures[:20], activation, **settings)
    if activation == "uint8":
        # Dedicated pairs quantise one result twice, which ONNX Runtime does not fuse.
        fused = [] if "DedicatedQDQPair" in settings.get("extra_options", {}) else ["Conv", "Add", "GlobalAveragePool"]
        return identical(model, path, pictures, work, fused)
    return operators_alone(model, pictures, work)


def quantised_by_chipfit(source, target, calibration, work):
    np.savez(work / "calibration.npz", x=calibration, y=np.zeros(len(calibration), np.int64))
    done = subprocess.run(
        [CHIPFIT, "quantize", source, "--data", work / "calibration.npz", "-o", target, "--force"], capture_output=True, text=True
    )
    require(done.returncode == 0, f"chipfit quantize: {done.stderr.strip()}")
    return onnx.load(target)


WEIGHTS = {"squeezenet1.1": "squeezenet1.1.pkl", "efficientnet-lite0": "efficientnet-lite0.pth"}


def network(work, name):
    """A network of the zoo, with its trained weights where they were fetched."""
    path = work / f"{name}.onnx"
    weights = next(iter(sorted(DATA.rglob(WEIGHTS[name]))), None)
    if weights is None:
        zoo(name, path)
        return path, "seeded weights"
    done = subprocess.run([CHIPFIT, "zoo", name, "--weights", weights, "-o", path, "--force"], capture_output=True, text=True)
    require(done.returncode == 0, f"chipfit zoo {name}: {done.stderr.strip()}")
    return path, "trained weights"


def photographs(name):
    """Photographs as the network takes them."""
    folders = sorted({path.parent for path in DATA.rglob("imagenet_*.jpg")})
    if folders:
        return np.stack([prepare(name, picture) for picture, _ in imagenet_samples(folders[0])])
    paths = [path for path in sorted((DATA / "pictures").glob("*.png")) if min(Image.open(path).size) >= 224]
    return np.stack([prepare(name, Image.open(path)) for path in paths[:20]]) if paths else None


def large(work, name, by, count):
    source, weights = network(work, name)
    pictures = photographs(name)
    target = work / "large.onnx"
    if by == "tool":
        model = quantised_by_tool(prepared(source, work / "prepared.onnx"), target, pictures[:6], "uint8", per_channel=True, weight_type=QuantType.QInt8)
    else:
        model = quantised_by_chipfit(source, target, pictures[:6], work)
    return f"{weights}: {identical(model, target, pictures[:count], work, ['Conv'])}"


def main():
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for kind, name in itertools.product(("uint8", "int8"), BUILDERS):
            tally.check(f"{kind} {name}", random_graphs, work, kind, name, 60 if LONG else 6)
        source, pictures = SHARED / "models/mlperf-tiny-resnet8-cifar10.onnx", cifar(200 if LONG else 30)
        if pictures is None or not source.exists():
            tally.skip("ResNet-8", f"no {SHARED}/data or {SHARED}/models")
        else:
            ready = prepared(source, work / "prepared-resnet.onnx")
            for activation, settings in resnet_settings():
                shown = ", ".join(f"{key} {value}" for key, value in settings.items())
                tally.check(f"ResNet-8 by ONNX Runtime's tool: {activation}, {shown}", resnet, work, ready, pictures, activation, settings)
            tally.check("ResNet-8 by chipfit quantize", lambda: identical(
                quantised_by_chipfit(source, work / "resnet.onnx", pictures[:20], work), work / "resnet.onnx", pictures, work, ["Conv", "Add"]
            ))
        for name, by in itertools.product(WEIGHTS, ("tool", "chipfit")):
            if photographs(name) is None:
                tally.skip(f"{name} by {by}", f"no pictures in {DATA}")
            else:
                tally.check(f"{name} by {by}", large, work, name, by, 20 if LONG else 2)
    tally.close()


if __name__ == "__main__":
    sys.exit(main())
