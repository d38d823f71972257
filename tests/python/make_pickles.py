"""Writes the small pickles that crates/chipfit-model/tests/zoo_weights.rs reads: make_pickles.py FOLDER

numpy_0.pkl to numpy_5.pkl hold the same arrays in each pickle protocol, legacy.pth is in torch's format before zip
files, written here without torch: stand-ins give the pickler the names of torch's classes. Needs numpy.
"""

import collections
import pathlib
import pickle
import struct
import sys
import types

import numpy as np


def arrays():
    return {
        "conv1": [np.arange(6, dtype=np.float32).reshape(2, 3) - 2.5, np.array([0.5, -1.0])],
        "nested": {
            "fortran": np.asfortranarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4)),
            "big": np.array([[1.5, -2.0]], dtype=">f4"),
            "half": np.array([0.25, 65504.0], dtype=np.float16),
        },
        "scalar": np.array(7, dtype=np.int64),
        "empty": np.zeros((0, 4), dtype=np.float32),
        "epoch": 12,
        "note": "caf\u00e9",
        "big number": 1 << 70,
    }


class Reference:
    """Stands for a storage: pickled as a persistent id."""

    def __init__(self, kind, key, elements):
        self.id = ("storage", kind, key, "cpu", elements, None)


class Call:
    """Pickled as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Pickler(pickle._Pickler):
    def persistent_id(self, thing):
        return thing.id if isinstance(thing, Reference) else None


def stand_in(module, name):
    thing = type(name, (), {"__module__": module})
    setattr(sys.modules.setdefault(module, types.ModuleType(module)), name, thing)
    return thing


def torch_file(path):
    rebuild = stand_in("torch._utils", "_rebuild_tensor_v2")
    sys.modules["torch"] = types.ModuleType("torch")
    floats, longs = stand_in("torch", "FloatStorage"), stand_in("torch", "LongStorage")
    a, b = Reference(floats, "11", 12), Reference(longs, "22", 1)

    def tensor(storage, offset, size, stride):
        return Call(rebuild, storage, offset, size, stride, False, collections.OrderedDict())

    state = collections.OrderedDict()
    state["plain"] = tensor(a, 0, (3, 4), (4, 1))
    state["turned"] = tensor(a, 0, (4, 3), (1, 4))
    state["part"] = tensor(a, 5, (2, 2), (4, 1))
    state["norm.num_batches_tracked"] = tensor(b, 0, (), ())
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    with open(path, "wb") as file:
        for thing in (0x1950A86A20F9469CFC6C, 1001, system, state, ["11", "22"]):
            Pickler(file, protocol=2).dump(thing)
        file.write(struct.pack("<q12f", 12, *range(12)))
        file.write(struct.pack("<qq", 1, 9))


def main(folder):
    folder = pathlib.Path(folder)
    for protocol in range(6):
        (folder / f"numpy_{protocol}.pkl").write_bytes(pickle.dumps(arrays(), protocol=protocol))
    torch_file(folder / "legacy.pth")


if __name__ == "__main__":
    main(*sys.argv[1:])
