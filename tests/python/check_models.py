"""Judges ONNX files by ONNX's own checker (strict shape inference) and by ONNX Runtime.

    check_models.py check FILE...            the checker alone
    check_models.py run LOW HIGH FILE...     and a run on seeded noise, uniform from LOW to HIGH

`run` takes open dimensions as 2. The outputs must have their declared shapes, be finite and not constant; every
convolution, transposed convolution and full connection must give values whose root mean square lies between 0.1 and
10, which is what "seeded activations stay near 1" means. Exit status 1 and a message naming the file otherwise.
"""

import sys

import numpy as np
import onnx

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
LAYERS = ("Conv", "ConvTranspose", "Gemm")


def run(model, low, high):
    import onnxruntime

    declared = [o.name for o in model.graph.output]
    layers = [n.output[0] for n in model.graph.node if n.op_type in LAYERS]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in layers if name not in declared)
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    sizes = {}
    feeds = {}
    for value in session.get_inputs():
        shape = [d if isinstance(d, int) else sizes.setdefault(d, 2) for d in value.shape]
        feeds[value.name] = random.uniform(low, high, shape).astype(TYPES[value.type])
    for value, result in zip(session.get_outputs(), session.run(None, feeds)):
        result = result.astype(np.float64)
        if not np.isfinite(result).all():
            raise ValueError(f"'{value.name}' is not finite")
        level = np.sqrt(np.mean(result**2))
        if value.name in layers and not 0.1 < level < 10:
            raise ValueError(f"'{value.name}' has a root mean square of {level:.3g}")
        if value.name in declared:
            shape = [d if isinstance(d, int) else sizes[d] for d in value.shape]
            if list(result.shape) != shape:
                raise ValueError(f"output '{value.name}' has shape {result.shape}, declared {shape}")
            if result.std() == 0:
                raise ValueError(f"output '{value.name}' is constant")


def main(mode, arguments):
    limits, paths = (arguments[:2], arguments[2:]) if mode == "run" else (None, arguments)
    for path in paths:
        try:
            model = onnx.load(path)
            onnx.checker.check_model(model, full_check=True)
            if limits:
                run(model, *map(float, limits))
        except Exception as error:
            sys.exit(f"{path}: {error}")
        print(f"{path}: ok")


if __name__ == "__main__":
    if len(sys.argv) < (5 if sys.argv[1:2] == ["run"] else 3) or sys.argv[1] not in ("check", "run"):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
