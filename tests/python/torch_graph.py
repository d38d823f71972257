"""A float ONNX classifier as a PyTorch computation with batch statistics: the oracle of training from scratch.

Understands the operators that `chipfit_train::scratch` trains. PyTorch makes the gradients; nothing of ours is used.
"""

import numpy as np
import onnx
import torch
import torch.nn.functional as functional
from onnx import numpy_helper


class FloatGraph:
    """`parameters` are leaf tensors by initializer name; `statistics` become the running mean and variance."""

    def __init__(self, model, dtype=torch.float64):
        self.graph, self.dtype = model.graph, dtype
        constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.statistics, self.parameters, self.constants = {}, {}, {}
        running = {name for node in model.graph.node if node.op_type == "BatchNormalization" for name in node.input[3:5]}
        read = {name for node in model.graph.node for name in node.input}
        trained = {"Conv": (1, 2), "Gemm": (1, 2), "MatMul": (1,), "Add": (0, 1), "BatchNormalization": (1, 2)}
        for node in model.graph.node:
            for position in trained.get(node.op_type, ()):
                name = node.input[position] if position < len(node.input) else ""
                if name in constants:
                    self.parameters[name] = torch.tensor(constants[name], dtype=dtype, requires_grad=True)
        for name, array in constants.items():
            if name in running:
                self.statistics[name] = torch.tensor(array, dtype=dtype)
            elif name in read and name not in self.parameters:
                self.constants[name] = array

    def logits(self, x):
        """Forward with batch statistics; a softmax at the end is left out."""
        values = {self.graph.input[0].name: x.to(self.dtype)}
        for node in self.graph.node:
            if node.op_type in ("Softmax", "LogSoftmax"):
                return values[node.input[0]]
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            inputs = [self.value(values, name) for name in node.input]
            values[node.output[0]] = self.node(node, attributes, inputs)
        return values[self.graph.output[0].name]

    def value(self, values, name):
        for known in (values, self.parameters, self.statistics, self.constants):
            if name in known:
                return known[name]
        assert name == "", name
        return None

    def node(self, node, attributes, inputs):
        x = inputs[0]
        match node.op_type:
            case "Conv":
                top, left, bottom, right = attributes.get("pads", [0] * 4)
                bias = inputs[2] if len(inputs) > 2 else None
                padded = functional.pad(x, (left, right, top, bottom))
                stride, group = attributes.get("strides", [1, 1]), attributes.get("group", 1)
                return functional.conv2d(padded, inputs[1], bias, stride, 0, attributes.get("dilations", [1, 1]), group)
            case "Gemm":
                weight = inputs[1].T if attributes.get("transB") else inputs[1]
                return x @ weight + (inputs[2] if len(inputs) > 2 else 0)
            case "MatMul":
                return x @ inputs[1]
            case "BatchNormalization":
                return self.norm(node, attributes, inputs)
            case "Relu":
                return functional.relu(x)
            case "Clip":
                return functional.hardtanh(x, float(inputs[1]), float(inputs[2]))
            case "Add":
                return x + inputs[1]
            case "MaxPool":
                top, left, bottom, right = attributes.get("pads", [0] * 4)
                padded = functional.pad(x, (left, right, top, bottom), value=float("-inf"))
                return functional.max_pool2d(padded, attributes["kernel_shape"], attributes.get("strides", [1, 1]))
            case "AveragePool":
                return self.average(attributes, x)
            case "GlobalAveragePool":
                return x.mean((2, 3), keepdim=True)
            case "Flatten" | "Reshape":
                return x.flatten(1)
            case "Identity" | "Dropout":
                return x
        raise NotImplementedError(node.op_type)

    def norm(self, node, attributes, inputs):
        x, scale, shift = inputs[:3]
        axes = [0, *range(2, x.dim())]
        momentum = attributes.get("momentum", 0.9)
        now = (x.mean(axes).detach(), x.var(axes, unbiased=False).detach())  # ONNX keeps the population variance.
        for name, value in zip(node.input[3:5], now):
            self.statistics[name] = momentum * self.statistics[name] + (1 - momentum) * value
        return functional.batch_norm(x, None, None, scale, shift, training=True, eps=attributes.get("epsilon", 1e-5))

    def average(self, attributes, x):
        top, left, bottom, right = attributes.get("pads", [0] * 4)
        kernel, stride = attributes["kernel_shape"], attributes.get("strides", [1, 1])

        def sums(values):
            padded = functional.pad(values, (left, right, top, bottom))
            return functional.avg_pool2d(padded, kernel, stride, divisor_override=1)

        count = kernel[0] * kernel[1] if attributes.get("count_include_pad") else sums(torch.ones_like(x))
        return sums(x) / count

    def backward(self, x, labels, smoothing):
        """The mean loss; gradients lie in the parameters' `grad`."""
        logits = self.logits(torch.as_tensor(x))
        loss = functional.cross_entropy(logits, torch.as_tensor(labels), label_smoothing=smoothing)
        loss.backward()
        return float(loss.detach())


def gradients(model, x, labels, smoothing):
    """`loss`, and every parameter's gradient and every running statistic by name, as float64 arrays."""
    graph = FloatGraph(model)
    loss = graph.backward(np.asarray(x, np.float64), np.asarray(labels, np.int64), smoothing)
    found = {name: parameter.grad.numpy() for name, parameter in graph.parameters.items()}
    return loss, found, {name: value.numpy() for name, value in graph.statistics.items()}
