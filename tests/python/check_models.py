"""Judges ONNX files by ONNX's own checker (strict shape inference) and, in mode `run`, by ONNX Runtime.

    check_models.py check|run FILE...

`run` feeds seeded uniform noise, open dimensions as 2, and asks for finite outputs of the declared shapes that
are not constant. Exit status 1 and a message naming the file where anything is wrong.
"""

import sys

import numpy as np
import onnx


def run(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
    sizes = {}
    feeds = {}
    for value in session.get_inputs():
        shape = [d if isinstance(d, int) else sizes.setdefault(d, 2) for d in value.shape]
        feeds[value.name] = random.uniform(-1, 1, shape).astype(types[value.type])
    for value, result in zip(session.get_outputs(), session.run(None, feeds)):
        shape = [d if isinstance(d, int) else sizes[d] for d in value.shape]
        if list(result.shape) != shape:
            raise ValueError(f"output '{value.name}' has shape {result.shape}, declared {shape}")
        if not np.isfinite(result).all():
            raise ValueError(f"output '{value.name}' is not finite")
        if result.std() == 0:
            raise ValueError(f"output '{value.name}' is constant")


def main(mode, paths):
    for path in paths:
        try:
            onnx.checker.check_model(onnx.load(path), full_check=True)
            if mode == "run":
                run(path)
        except Exception as error:
            sys.exit(f"{path}: {error}")
        print(f"{path}: ok")


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("check", "run"):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
