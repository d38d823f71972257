"""Small random QDQ graphs, one operator each, whose inputs reach every byte: what bit_identity.py compares."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

TYPES = {"uint8": (np.uint8, onnx.TensorProto.UINT8), "int8": (np.int8, onnx.TensorProto.INT8)}


class Graph:
    """A QDQ graph with one float input, grown value by value. A value is a float name with a shape."""

    def __init__(self, random, kind="uint8", opset=17):
        self.random, self.kind, self.opset = random, kind, opset
        self.nodes, self.constants, self.shapes, self.serial = [], [], {}, 0

    def name(self, stem):
        self.serial += 1
        return f"{stem}{self.serial}"

    def constant(self, array, stem="c"):
        name = self.name(stem)
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op, inputs, shape, **attributes):
        output = self.name(op.lower())
        self.nodes.append(helper.make_node(op, inputs, [output], name=self.name(f"{op}_"), **attributes))
        self.shapes[output] = shape
        return output

    def grid(self, scale=None, zero=None):
        dtype = TYPES[self.kind][0]
        info = np.iinfo(dtype)
        scale = np.float32(self.random.uniform(0.003, 0.08) if scale is None else scale)
        zero = dtype(self.random.integers(info.min, info.max + 1) if zero is None else zero)
        return scale, zero

    def quantised(self, value, grid=None):
        """QuantizeLinear and DequantizeLinear behind a value."""
        scale, zero = self.grid() if grid is None else grid
        s, z = self.constant(scale, "s"), self.constant(zero, "z")
        quantised = self.node("QuantizeLinear", [value, s, z], self.shapes[value])
        return self.node("DequantizeLinear", [quantised, s, z], self.shapes[value])

    def input(self, shape):
        """The input, quantised; `picture` makes values for it that reach every byte."""
        self.shapes["x"] = shape
        self.input_grid = self.grid()
        return self.quantised("x", self.input_grid)

    def other_grid(self, value, factor):
        """The same bytes with another scale: a product with a constant, quantised on the grid that it makes exact."""
        scale, zero = self.input_grid
        product = self.node("Mul", [value, self.constant(np.float32(factor))], self.shapes[value])
        return self.quantised(product, (np.float32(scale * np.float32(factor)), zero))

    def weights(self, shape, axis, channels, per_channel=True, kind="int8", symmetric=True):
        dtype = TYPES[kind][0]
        info = np.iinfo(dtype)
        values = self.random.integers(info.min, info.max + 1, shape).astype(dtype)
        count = channels if per_channel else 1
        scales = (self.random.uniform(0.5, 2.0, count) * 0.01).astype(np.float32)
        middle = 0 if kind == "int8" else 128
        zeros = np.full(count, middle) if symmetric else self.random.integers(middle - 30, middle + 30, count)
        zeros = zeros.astype(dtype)
        if not per_channel:
            scales, zeros = scales[0], zeros[0]
        names = [self.constant(values, "w"), self.constant(scales, "ws"), self.constant(zeros, "wz")]
        attributes = {"axis": axis} if per_channel else {}
        return self.node("DequantizeLinear", names, shape, **attributes), scales

    def bias(self, channels, x_scale, scales):
        values = self.random.integers(-8000, 8000, channels).astype(np.int32)
        product = np.asarray(np.float32(x_scale) * scales, np.float32)
        names = [self.constant(values, "b"), self.constant(product, "bs")]
        return self.node("DequantizeLinear", names, [channels], **({"axis": 0} if product.ndim else {}))

    def model(self, output):
        """The model that ends in a value, which is quantised last."""
        inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", *self.shapes["x"][1:]])]
        outputs = [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)]
        graph = helper.make_graph(self.nodes, "graph", inputs, outputs, self.constants)
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
        return onnx.shape_inference.infer_shapes(model)

    def picture(self, count=2):
        """Pictures that reach every byte of the input's grid and a little beyond."""
        scale, zero = self.input_grid
        info = np.iinfo(zero.dtype)
        steps = self.random.integers(info.min - 3, info.max + 4, [count, *self.shapes["x"][1:]])
        return ((steps - int(zero)) * np.float64(scale)).astype(np.float32)


def spread(graph, x_scale, weight_scales, products):
    """A scale that spreads the sums of a layer over the bytes."""
    step = float(np.float32(x_scale)) * float(np.mean(weight_scales))
    return step * 74 * 74 * np.sqrt(products) / graph.random.uniform(20, 90)


def conv(graph, axes=2):
    random = graph.random
    groups = int(random.choice([1, 1, 2, 4]))
    group_channels = int(random.integers(1, 9)) if groups < 4 else int(random.choice([1, 2]))
    out = groups * int(random.integers(1, 9))
    size = [int(random.integers(6, 13)) for _ in range(axes)]
    kernel = [int(random.integers(1, 5)) for _ in range(axes)]
    strides = [int(random.integers(1, 4)) for _ in range(axes)]
    dilations = [int(random.integers(1, 3)) if random.random() < 0.4 and k < 4 else 1 for k in kernel]
    attributes = {"group": groups, "strides": strides, "dilations": dilations, "kernel_shape": kernel}
    mode = random.choice(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
    if mode == "NOTSET":
        attributes["pads"] = [int(random.integers(0, k + 1)) for k in kernel + kernel]
    else:
        attributes["auto_pad"] = str(mode)
        if mode != "VALID":
            attributes["dilations"] = [1] * axes
    x = graph.input([1, groups * group_channels, *size])
    kind = "int8" if graph.kind == "int8" else str(random.choice(["int8", "int8", "uint8"]))
    weight, scales = graph.weights(
        [out, group_channels, *kernel], 0, out, random.random() < 0.7, kind, graph.kind == "int8" or random.random() < 0.7
    )
    inputs = [x, weight]
    if random.random() < 0.7:
        inputs.append(graph.bias(out, graph.input_grid[0], scales))
    y = graph.node("Conv", inputs, None, **attributes)
    if random.random() < 0.4:
        y = graph.node("Relu", [y], None)
        info = np.iinfo(TYPES[graph.kind][0])
        grid = graph.grid(spread(graph, graph.input_grid[0], scales, group_channels * np.prod(kernel)) / 2, info.min)
    else:
        grid = graph.grid(spread(graph, graph.input_grid[0], scales, group_channels * np.prod(kernel)))
    return graph.quantised(y, grid)


def conv_1d(graph):
    return conv(graph, 1)


def gemm(graph):
    random = graph.random
    inner, out = int(random.integers(1, 80)), int(random.integers(1, 40))
    x = graph.input([1, inner])
    transposed = bool(random.integers(0, 2))
    shape = [out, inner] if transposed else [inner, out]
    weight, scales = graph.weights(shape, 0 if transposed else 1, out, random.random() < 0.6)
    inputs = [x, weight]
    if random.random() < 0.7:
        inputs.append(graph.bias(out, graph.input_grid[0], scales))
    y = graph.node("Gemm", inputs, [1, out], transB=int(transposed))
    return graph.quantised(y, graph.grid(spread(graph, graph.input_grid[0], scales, inner)))


def matmul(graph):
    random = graph.random
    rows, inner, out = int(random.integers(1, 6)), int(random.integers(1, 60)), int(random.integers(1, 30))
    shape = [1, rows, inner] if random.random() < 0.6 else [1, inner]
    x = graph.input(shape)
    weight, scales = graph.weights([inner, out], 1, out, random.random() < 0.5)
    y = graph.node("MatMul", [x, weight], [*shape[:-1], out])
    return graph.quantised(y, graph.grid(spread(graph, graph.input_grid[0], scales, inner)))


def matmul_of_activations(graph):
    random = graph.random
    heads, rows, inner = int(random.integers(1, 4)), int(random.integers(1, 6)), int(random.integers(1, 20))
    x = graph.input([1, heads, rows, inner])
    a = graph.other_grid(x, random.uniform(0.5, 2.0))
    b = graph.node("Transpose", [graph.other_grid(x, random.uniform(0.5, 2.0))], [1, heads, inner, rows], perm=[0, 1, 3, 2])
    y = graph.node("MatMul", [a, graph.quantised(b, (graph.input_grid[0], graph.input_grid[1]))], [1, heads, rows, rows])
    return graph.quantised(y, graph.grid(spread(graph, graph.input_grid[0], graph.input_grid[0], inner)))


def pair(graph, shape):
    """Two operands of one shape that meet in every pair of bytes, on grids of their own."""
    x = graph.input([1, 2 * shape[1], *shape[2:]])
    first, half = graph.constant(np.array([0])), graph.constant(np.array([shape[1]]))
    end, axis = graph.constant(np.array([2 * shape[1]])), graph.constant(np.array([1]))
    operands = []
    for start, stop in ((first, half), (half, end)):
        part = graph.quantised(graph.node("Slice", [x, start, stop, axis], shape), graph.input_grid)
        operands.append(graph.other_grid(part, graph.random.uniform(0.3, 3.0)))
    return operands


def binary(graph, op):
    shape = [1, int(graph.random.integers(1, 6)), 90, 90]
    a, b = pair(graph, shape)
    scale = float(graph.input_grid[0])
    scale = scale * graph.random.uniform(1, 3) if op == "Add" else scale * scale * graph.random.uniform(60, 180)
    return graph.quantised(graph.node(op, [a, b], shape), graph.grid(scale))


def broadcast(graph, op):
    """One operand is a map's mean (squeeze and excite), on either side."""
    channels = int(graph.random.integers(1, 6))
    x = graph.input([1, channels, 40, 40])
    mean = graph.quantised(graph.node("GlobalMaxPool", [x], [1, channels, 1, 1]), graph.input_grid)
    mean = graph.other_grid(mean, graph.random.uniform(0.3, 3.0))
    operands = [x, mean] if graph.random.random() < 0.5 else [mean, x]
    scale = float(graph.input_grid[0])
    scale = scale * graph.random.uniform(1, 3) if op == "Add" else scale * scale * graph.random.uniform(60, 180)
    return graph.quantised(graph.node(op, operands, [1, channels, 40, 40]), graph.grid(scale))


def with_constant(graph, op):
    channels = int(graph.random.integers(2, 6))
    shape = [1, channels, 20, 20]
    x = graph.input(shape)
    dtype = TYPES[graph.kind][0]
    info = np.iinfo(dtype)
    form = [[], [1], [channels, 1, 1], [1, channels, 1, 1], [20], [1, channels, 20, 20]][graph.random.integers(0, 6)]
    values = graph.constant(graph.random.integers(info.min, info.max + 1, form).astype(dtype))
    scale, zero = graph.grid()
    constant = graph.node("DequantizeLinear", [values, graph.constant(scale), graph.constant(zero)], form)
    operands = [x, constant] if graph.random.random() < 0.5 else [constant, x]
    step = float(graph.input_grid[0])
    y_scale = (step + float(scale)) * graph.random.uniform(0.5, 2) if op == "Add" else step * float(scale) * 100
    return graph.quantised(graph.node(op, operands, shape), graph.grid(y_scale))


def concat(graph):
    shape = [1, int(graph.random.integers(1, 5)), 8, 9]
    a, b = pair(graph, shape)
    axis = int(graph.random.integers(1, 4))
    result = [length * (2 if at == axis else 1) for at, length in enumerate(shape)]
    grid = graph.input_grid if graph.random.random() < 0.3 else graph.grid(float(graph.input_grid[0]) * 1.3)
    return graph.quantised(graph.node("Concat", [a, b], result, axis=axis), grid)


def average_pool(graph):
    random = graph.random
    kernel = [int(k) for k in random.integers(1, 5, 2)]
    attributes = {"kernel_shape": kernel, "strides": [int(s) for s in random.integers(1, 4, 2)]}
    if random.random() < 0.3:
        attributes["auto_pad"] = str(random.choice(["SAME_UPPER", "SAME_LOWER"]))
    else:
        attributes["pads"] = [int(random.integers(0, k)) for k in kernel + kernel]
    attributes["count_include_pad"] = int(random.integers(0, 2))
    x = graph.input([1, int(random.integers(1, 9)), 13, 11])
    y = graph.node("AveragePool", [x], None, **attributes)
    return graph.quantised(y, graph.grid(float(graph.input_grid[0]) * random.uniform(0.5, 1.5)))


def average_pool_1d(graph):
    x = graph.input([1, 5, 30])
    y = graph.node("AveragePool", [x], None, kernel_shape=[3], strides=[2], pads=[1, 1])
    return graph.quantised(y)


def global_average_pool(graph):
    random = graph.random
    x = graph.input([1, int(random.integers(1, 40)), int(random.integers(1, 15)), int(random.integers(1, 15))])
    y = graph.node("GlobalAveragePool", [x], None)
    return graph.quantised(y, graph.grid(float(graph.input_grid[0]) * random.uniform(0.05, 1.2)))


def max_pool(graph):
    random = graph.random
    kernel = [int(k) for k in random.integers(1, 5, 2)]
    attributes = {"kernel_shape": kernel, "strides": [int(s) for s in random.integers(1, 4, 2)]}
    attributes["pads"] = [int(random.integers(0, k)) for k in kernel + kernel]
    attributes["ceil_mode"] = int(random.integers(0, 2))
    attributes["dilations"] = [int(random.integers(1, 3)) for _ in kernel]
    x = graph.input([1, int(random.integers(1, 9)), 13, 11])
    y = graph.node("MaxPool", [x], None, **attributes)
    return graph.quantised(y, graph.input_grid if random.random() < 0.6 else None)


UNARY = {
    "Relu": {},
    "LeakyRelu": {"alpha": 0.13},
    "Sigmoid": {},
    "Tanh": {},
    "HardSwish": {},
    "HardSigmoid": {"alpha": 0.17, "beta": 0.4},
    "Elu": {"alpha": 0.7},
    "Softplus": {},
    "Softsign": {},
    "Abs": {},
    "Neg": {},
    "Exp": {},
    "Erf": {},
}


def unary(graph, op):
    x = graph.input([1, 7, 16, 16])
    y = graph.node(op, [x], [1, 7, 16, 16], **UNARY[op])
    return graph.quantised(y, graph.grid(1 / 256, None) if op in ("Sigmoid", "Tanh", "HardSigmoid") else None)


def clip(graph):
    x = graph.input([1, 7, 16, 16])
    bounds = [graph.constant(np.float32(b)) for b in sorted(graph.random.uniform(-2, 6, 2))]
    return graph.quantised(graph.node("Clip", [x, *bounds], [1, 7, 16, 16]), None)


def requantised(graph):
    x = graph.input([1, 7, 16, 16])
    return graph.quantised(graph.node("Identity", [x], [1, 7, 16, 16]), graph.grid(float(graph.input_grid[0]) * 1.7))


def moves(graph):
    """Movement operators one after another, some with their own Q/DQ pair, some with another grid."""
    random = graph.random
    shape = [1, 4, 6, 8]
    value = graph.input(shape)
    for _ in range(int(random.integers(1, 5))):
        op = str(random.choice(["Transpose", "Reshape", "Flatten", "Pad", "Slice", "DepthToSpace", "SpaceToDepth", "Resize", "Squeeze"]))
        rank = len(shape)
        if op == "Transpose":
            perm = [0, *(1 + random.permutation(rank - 1))]
            perm = [int(p) for p in perm]
            shape = [shape[p] for p in perm]
            value = graph.node(op, [value], shape, perm=perm)
        elif op == "Reshape":
            total = int(np.prod(shape))
            first = int(random.choice([d for d in (1, 2, 3, 4, 6, 8) if total % d == 0]))
            shape = [1, first, total // first]
            value = graph.node(op, [value, graph.constant(np.array([0, first, -1]))], shape)
        elif op == "Flatten":
            shape = [1, int(np.prod(shape))]
            value = graph.node(op, [value], shape)
        elif op == "Pad":
            pads = [0, *random.integers(0, 3, rank - 1), 0, *random.integers(0, 3, rank - 1)]
            mode = str(random.choice(["constant", "reflect", "edge"])) if min(shape[1:], default=1) > 2 else "constant"
            shape = [d + int(pads[a]) + int(pads[a + rank]) for a, d in enumerate(shape)]
            inputs = [value, graph.constant(np.array(pads, np.int64))]
            if mode == "constant" and random.random() < 0.5:
                inputs.append(graph.constant(np.float32(random.uniform(-1, 1))))
                value = graph.quantised(graph.node(op, inputs, shape, mode=mode), None)
                continue
            value = graph.node(op, inputs, shape, mode=mode)
        elif op == "Slice":
            axis = int(random.integers(1, rank))
            start, step = int(random.integers(0, shape[axis])), int(random.choice([1, 2, -1]))
            end = np.iinfo(np.int64).max if step > 0 else np.iinfo(np.int64).min
            length = len(range(shape[axis])[start::step])
            shape = [length if a == axis else d for a, d in enumerate(shape)]
            inputs = [graph.constant(np.array([v], np.int64)) for v in (start, end, axis, step)]
            value = graph.node(op, [value, *inputs], shape)
        elif op in ("DepthToSpace", "SpaceToDepth"):
            if rank != 4 or (shape[1] % 4 if op == "DepthToSpace" else shape[2] % 2 or shape[3] % 2):
                continue
            attributes = {"mode": str(random.choice(["DCR", "CRD"]))} if op == "DepthToSpace" else {}
            shape = [1, shape[1] // 4, shape[2] * 2, shape[3] * 2] if op == "DepthToSpace" else [1, shape[1] * 4, shape[2] // 2, shape[3] // 2]
            value = graph.node(op, [value], shape, blocksize=2, **attributes)
        elif op == "Resize":
            if rank != 4 or int(np.prod(shape)) > 3000:
                continue
            transformation = str(random.choice(["asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"]))
            nearest = str(random.choice(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]))
            factors = random.choice([0.5, 1.0, 1.5, 2.0, 3.0], 2)
            scales = np.array([1, 1, *factors], np.float32)
            shape = [*shape[:2], *(int(np.floor(d * f)) for d, f in zip(shape[2:], factors))]
            if min(shape) == 0:
                shape = list(graph.shapes[value])
                continue
            value = graph.node(op, [value, "", graph.constant(scales)], shape, mode="nearest", coordinate_transformation_mode=transformation, nearest_mode=nearest)
        elif op == "Squeeze":
            value = graph.node("Unsqueeze", [value, graph.constant(np.array([1]))], [1, 1, *shape[1:]])
            value = graph.node("Squeeze", [value, graph.constant(np.array([1]))], shape)
        if random.random() < 0.5:
            value = graph.quantised(value, graph.input_grid)
    return graph.quantised(value, graph.input_grid if random.random() < 0.7 else None)


def conv_then_moves(graph):
    """A convolution whose result is pooled and moved before it is quantised."""
    random = graph.random
    x = graph.input([1, 3, 10, 12])
    weight, scales = graph.weights([8, 3, 3, 3], 0, 8)
    y = graph.node("Conv", [x, weight, graph.bias(8, graph.input_grid[0], scales)], [1, 8, 10, 12], pads=[1, 1, 1, 1])
    y = graph.node("Relu", [y], [1, 8, 10, 12])
    if random.random() < 0.5:
        y = graph.node("MaxPool", [y], [1, 8, 5, 6], kernel_shape=[2, 2], strides=[2, 2])
    if random.random() < 0.5:
        y = graph.node("Transpose", [y], None, perm=[0, 2, 3, 1])
    info = np.iinfo(TYPES[graph.kind][0])
    y = graph.quantised(y, graph.grid(spread(graph, graph.input_grid[0], scales, 27) / 2, info.min))
    return y


BUILDERS = {
    "conv": conv,
    "conv 1-D": conv_1d,
    "gemm": gemm,
    "matmul": matmul,
    "matmul of activations": matmul_of_activations,
    **{f"{op.lower()}": (lambda graph, op=op: binary(graph, op)) for op in ("Add", "Mul")},
    **{f"{op.lower()} broadcast": (lambda graph, op=op: broadcast(graph, op)) for op in ("Add", "Mul")},
    **{f"{op.lower()} of a constant": (lambda graph, op=op: with_constant(graph, op)) for op in ("Add", "Mul")},
    "concat": concat,
    "average pool": average_pool,
    "average pool 1-D": average_pool_1d,
    "global average pool": global_average_pool,
    "max pool": max_pool,
    **{op: (lambda graph, op=op: unary(graph, op)) for op in UNARY},
    "clip": clip,
    "requantised": requantised,
    "moves": moves,
    "conv then moves": conv_then_moves,
}
