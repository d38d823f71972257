"""Writes the seed corpora: for `onnx_read` small models that together touch every part of the format; for `idx` and
`npz` small arrays.

    python fuzz/make_seeds.py
"""

import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SEEDS = pathlib.Path(__file__).parent / "seeds"
FOLDER = SEEDS / "onnx_read"


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def save(name, nodes, inputs, outputs, initializers=(), functions=(), opset=17, ir_version=8, **extra):
    graph = helper.make_graph(nodes, name, inputs, outputs, initializers, **extra)
    opsets = [helper.make_opsetid("", opset)] + [helper.make_opsetid(f.domain, 1) for f in functions]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=ir_version, producer_name="seed")
    (FOLDER / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))


def arrays():
    (SEEDS / "idx").mkdir(parents=True, exist_ok=True)
    (SEEDS / "npz").mkdir(parents=True, exist_ok=True)
    for dims in [3], [2, 2, 3]:
        header = bytes([0, 0, 8, len(dims)]) + b"".join(dim.to_bytes(4, "big") for dim in dims)
        (SEEDS / "idx" / f"rank{len(dims)}").write_bytes(header + bytes(range(np.prod(dims))))
    x = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    np.savez(SEEDS / "npz" / "plain.npz", x=x, y=np.array([1, 0]))
    np.savez_compressed(SEEDS / "npz" / "packed.npz", x_test=x.astype(np.float32), y_test=np.array([[1], [0]], np.int32))
    np.save(SEEDS / "npz" / "fortran.npy", np.asfortranarray(x))
    np.save(SEEDS / "npz" / "structured.npy", np.zeros(2, [("a", "<f4"), ("b", "|u1")]))


def main():
    arrays()
    FOLDER.mkdir(parents=True, exist_ok=True)
    f32 = lambda *shape: np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    constant = numpy_helper.from_array
    x = value("x", ["N", 2, "H", "W"])

    save(
        "convolutions",
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
            helper.make_node("ConvTranspose", ["c", "wt", "b"], ["t"], strides=[2, 2], output_padding=[1, 0], group=1),
            helper.make_node("MaxPool", ["t"], ["y", "i"], kernel_shape=[2, 2], ceil_mode=1, auto_pad="SAME_UPPER"),
        ],
        [x],
        [value("y", None)],
        [constant(f32(2, 2, 3, 3), "w"), constant(f32(2, 1, 2, 2), "wt"), helper.make_tensor("b", 1, [1], [0.5])],
        value_info=[value("c", ["N", 2, None, None])],
    )
    save(
        "shape_arithmetic",
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Gather", ["s", "two"], ["h"], axis=0),
            helper.make_node("Unsqueeze", ["h", "axes"], ["h1"]),
            helper.make_node("Concat", ["h1", "rest"], ["to"], axis=0),
            helper.make_node("Reshape", ["x", "to"], ["r"]),
            helper.make_node("Slice", ["s", "axes", "end"], ["nc"]),
            helper.make_node("Cast", ["nc"], ["f"], to=1),
            helper.make_node("Constant", [], ["k"], value_floats=[2.0, 1.0]),
            helper.make_node("Mul", ["f", "k"], ["y"]),
        ],
        [x],
        [value("r", None), value("y", None)],
        [
            constant(np.array(2, np.int64), "two"),
            constant(np.array([0], np.int64), "axes"),
            constant(np.array([-1], np.int64), "rest"),
            helper.make_tensor("end", TensorProto.INT64, [1], [2]),
        ],
    )
    branch = lambda op, out: helper.make_graph([helper.make_node(op, ["x"], [out])], out, [], [value(out, None)])
    body = helper.make_graph(
        [helper.make_node("Add", ["v", "x"], ["o"]), helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [value("i", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value("v", None)],
        [value("d", [], TensorProto.BOOL), value("o", None)],
    )
    save(
        "subgraphs",
        [
            helper.make_node("If", ["flag"], ["a"], then_branch=branch("Relu", "t"), else_branch=branch("Neg", "e")),
            helper.make_node("Loop", ["n", "", "a"], ["y"], body=body),
        ],
        [x, value("flag", [], TensorProto.BOOL)],
        [value("y", None)],
        [constant(np.array(3, np.int64), "n")],
    )
    concat = helper.make_node("Concat", ["p", "p"], ["q"])
    concat.attribute.append(onnx.AttributeProto(name="axis", type=onnx.AttributeProto.INT, ref_attr_name="along"))
    function = helper.make_function("local", "Twice", ["p"], ["q"], [concat], [helper.make_opsetid("", 17)], ["along"])
    save("function", [helper.make_node("Twice", ["x"], ["y"], domain="local", along=1)], [x], [value("y", None)], functions=[function])
    quantised = constant(np.arange(8, dtype=np.int8).reshape(2, 1, 2, 2), "w8")
    save(
        "quantised",
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x8"]),
            helper.make_node("DequantizeLinear", ["x8", "s", "z"], ["xd"]),
            helper.make_node("DequantizeLinear", ["w8", "ws"], ["w"], axis=1),
            helper.make_node("ConvTranspose", ["xd", "w"], ["c"], strides=[2, 2]),
            helper.make_node("QuantizeLinear", ["c", "s", "z"], ["y"]),
        ],
        [x],
        [value("y", None, TensorProto.UINT8)],
        [quantised, constant(np.array([0.5], np.float32), "ws"), constant(np.float32(0.1), "s"), constant(np.uint8(3), "z")],
    )
    external = constant(f32(2), "w")
    external.ClearField("raw_data")
    external.data_location = TensorProto.EXTERNAL
    for key, text in [("location", "w.bin"), ("offset", "0"), ("length", "8")]:
        external.external_data.add(key=key, value=text)
    sparse = helper.make_sparse_tensor(constant(f32(1), "z"), constant(np.array([1], np.int64), "zi"), [2])
    typed = [
        helper.make_tensor("d", TensorProto.DOUBLE, [1], [1.5]),
        helper.make_tensor("h", TensorProto.FLOAT16, [1], [1.5]),
        helper.make_tensor("u", TensorProto.UINT64, [1], [7]),
        helper.make_tensor("str", TensorProto.STRING, [1], [b"text"]),
        helper.make_tensor("i4", TensorProto.INT4, [2], [1, -2]),
    ]
    save("tensors", [helper.make_node("Add", ["w", "z"], ["y"])], [], [value("y", None)], [external] + typed, sparse_initializer=[sparse])
    save("old", [helper.make_node("Add", ["x", "b"], ["y"], broadcast=1, axis=1)], [x, value("b", [2])], [value("y", None)], [constant(f32(2), "b")], opset=6, ir_version=3)


if __name__ == "__main__":
    main()
