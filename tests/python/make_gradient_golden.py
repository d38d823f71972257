"""Writes tests/golden/gradients.onnx: a small network with every kind of layer, a batch, and PyTorch's gradients.

    make_gradient_golden.py [OUT]

The network's initializers are its weights. The others, which no node reads, are the batch (`given/x`, `given/labels`,
`given/smoothing`) and the results (`expected/loss`, `expected/gradient/NAME`, `expected/running/NAME`), computed in
float64 and rounded once. Needs a Python with torch and onnx; the Rust test `golden` of chipfit-train reads the file.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from torch_graph import gradients

OUT = Path(__file__).resolve().parents[2] / "tests/golden/gradients.onnx"
SMOOTHING = 0.1


def network(random):
    nodes, constants = [], []

    def constant(name, array):
        constants.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    def node(op, name, inputs, **attributes):
        nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def conv(name, x, shape, bias=True, **attributes):
        inputs = [x, constant(f"{name}.weight", random.normal(0, 0.5, shape))]
        if bias:
            inputs.append(constant(f"{name}.bias", random.normal(0, 0.5, shape[0])))
        return node("Conv", name, inputs, **attributes)

    def norm(name, x, channels, **attributes):
        parts = [
            constant(f"{name}.scale", random.uniform(0.5, 1.5, channels)),
            constant(f"{name}.shift", random.normal(0, 0.3, channels)),
            constant(f"{name}.mean", random.normal(0, 0.3, channels)),
            constant(f"{name}.variance", random.uniform(0.5, 2, channels)),
        ]
        return node("BatchNormalization", name, [x, *parts], **attributes)

    x = conv("stem", "x", (6, 3, 3, 3), bias=False, pads=[1, 1, 1, 1])
    x = norm("stem_norm", x, 6, epsilon=1e-3, momentum=0.8)
    x = node("Relu", "stem_relu", [x])
    y = conv("depthwise", x, (6, 1, 3, 3), bias=False, group=6, strides=[2, 2], pads=[0, 1, 1, 1])
    y = norm("depthwise_norm", y, 6)
    y = node("Clip", "relu6", [y, constant("low", 0), constant("high", 1.5)])
    y = conv("dilated", y, (8, 3, 3, 3), group=2, dilations=[2, 2], pads=[2, 2, 2, 2])
    y = norm("dilated_norm", y, 8)
    shortcut = conv("shortcut", x, (8, 6, 1, 1), strides=[2, 2])
    x = node("Relu", "relu", [node("Add", "sum", [y, shortcut])])
    x = node("MaxPool", "maxpool", [x], kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1])
    a = node("AveragePool", "inside", [x], kernel_shape=[3, 3], strides=[1, 2], pads=[1, 1, 1, 1])
    b = node("AveragePool", "counted", [x], kernel_shape=[3, 3], strides=[1, 2], pads=[1, 1, 1, 1], count_include_pad=1)
    x = node("Add", "pools", [a, b])
    flat = node("Flatten", "flat", [x])
    features = 8 * 3 * 3
    product = node("MatMul", "product", [flat, constant("product.weight", random.normal(0, 0.3, (features, 5)))])
    left = node("Add", "biased", [product, constant("product.bias", random.normal(0, 0.3, 5))])
    left = node("Relu", "left", [left])
    left = node("Gemm", "scores", [left, constant("scores.weight", random.normal(0, 0.5, (5, 4)))])
    pooled = node("Flatten", "pooled", [node("GlobalAveragePool", "global", [x])])
    inputs = [pooled, constant("right.weight", random.normal(0, 0.5, (4, 8))), constant("right.bias", random.normal(0, 0.3, 4))]
    logits = node("Add", "logits", [left, node("Gemm", "right", inputs, transB=1)])
    assert logits == "logits"
    batch = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "golden", [batch("x", TensorProto.FLOAT, ["N", 3, 10, 9])], [batch("logits", TensorProto.FLOAT, ["N", 4])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="torch")
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(model, strict_mode=True))
    return model


def main(out):
    random = np.random.default_rng(1)
    model = network(random)
    # More pictures than one chunk of the trainer holds.
    x = random.normal(0, 1, (11, 3, 10, 9)).astype(np.float32)
    labels = random.integers(0, 4, 11)
    loss, found, statistics = gradients(model, x, labels, SMOOTHING)
    expected = {f"expected/gradient/{name}": array for name, array in found.items()}
    expected |= {f"expected/running/{name}": array for name, array in statistics.items()}
    extra = {"given/x": x, "given/smoothing": SMOOTHING, "expected/loss": loss, **expected}
    tensors = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in sorted(extra.items())]
    model.graph.initializer.extend([*tensors, numpy_helper.from_array(labels.astype(np.int64), "given/labels")])
    out.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, out)
    print(f"{out}: {out.stat().st_size} bytes, loss {loss:.6f}, {len(found)} gradients")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
