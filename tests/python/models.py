"""The ten networks with transposed convolutions: four real ones and the six of the zoo, with inputs for them.

Real networks see real pictures, prepared as their authors do; generators see seeded noise.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np
import onnx

import oracle
import pictures

ZOO = ["dcgan", "sngan", "artgan", "gp-gan", "mde", "fst"]
PHOTOGRAPHS = ["chelsea", "astronaut", "coffee", "page"]


@dataclass
class Network:
    """A model file and what to feed it: `feeds(0)`, `feeds(1)`, ... differ."""

    name: str
    path: Path
    feeds: Callable[[int], dict]

    def input_flags(self):
        """For chipfit, the sizes of this network's inputs."""
        return [flag for name, x in self.feeds(0).items() for flag in ("--input", f"{name}:{'x'.join(map(str, x.shape))}")]


def photograph(order, position, height, width):
    order = order + sorted(path.name for path in (oracle.DATA / "foolbox").glob("*.jpg")) if oracle.LONG else order
    return pictures.load(order[position % len(order)], height, width)


def real_networks(work):
    """Those that are there, and the names of those that are missing with the reason."""
    found, missing = [], []

    def add(name, path, feeds):
        if path.exists():
            found.append(Network(name, path, feeds))
        else:
            missing.append((name, f"{path.name} is not there (shared folder absent?)"))

    mean, spread = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    text_first = ["page", "coffee", "chelsea", "astronaut"]
    add("pp-ocrv4-det", oracle.DATA / "pp-ocrv4-det.onnx", lambda i: {"x": (photograph(text_first, i, 192, 384) - mean) / spread})
    faces = ["astronaut", "chelsea", "coffee", "page"]
    add("centerface", free_sizes(oracle.DATA / "centerface-fixed.onnx", work), lambda i: {"input.1": 255 * photograph(faces, i, 256, 256)})
    shared = oracle.SHARED / "models"
    add("real-cugan-2x", shared / "realcugan-se-up2x.onnx", lambda i: {"in0": photograph(PHOTOGRAPHS, i, 128, 128)})
    add("espcn-2x", shared / "espcn-nnresize-as-deconv.onnx", lambda i: {"onnx::Relu_0": photograph(PHOTOGRAPHS, i, 128, 128)})
    return found, missing


def free_sizes(path, work):
    """The package's CenterFace declares 10x3x32x32; the network itself takes any batch, height and width."""
    if not path.exists():
        return path
    model = onnx.load(path)
    held = {tensor.name for tensor in model.graph.initializer}
    for value in [v for v in model.graph.input if v.name not in held] + list(model.graph.output):
        for axis, symbol in ((0, "N"), (2, f"H_{value.name}"), (3, f"W_{value.name}")):
            value.type.tensor_type.shape.dim[axis].dim_param = symbol
    del model.graph.value_info[:]
    onnx.save(model, work / "centerface.onnx")
    return work / "centerface.onnx"


def zoo_network(name, work):
    path = work / f"{name}.onnx"
    oracle.zoo(name, path)
    return Network(name, path, invented(path))


def invented(path):
    """Photographs for inputs with three channels, else seeded noise; symbolic batches are 1."""
    graph = onnx.load(path, load_external_data=False).graph
    held = {tensor.name for tensor in graph.initializer}
    shapes = {v.name: [d.dim_value or 1 for d in v.type.tensor_type.shape.dim] for v in graph.input if v.name not in held}

    def feeds(position):
        random = np.random.default_rng(position)
        return {
            name: photograph(PHOTOGRAPHS, position, *shape[2:]) if len(shape) == 4 and shape[1] == 3 else random.standard_normal(shape).astype(np.float32)
            for name, shape in shapes.items()
        }

    return feeds
