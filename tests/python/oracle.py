"""What the oracle scripts share: the chipfit command, ONNX Runtime sessions, comparisons, and a tally.

Environment: CHIPFIT (the command; default: the release build), CHIPFIT_DATA (what `cargo xtask data` fetched),
CHIPFIT_SHARED (a folder with models/, may be absent). `cargo xtask test` sets them.
"""

import json
import os
import platform
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

ROOT = Path(__file__).resolve().parents[2]
CHIPFIT = os.environ.get("CHIPFIT", str(ROOT / "target/release/chipfit"))
DATA = Path(os.environ.get("CHIPFIT_DATA", ROOT / ".cache/data"))
SHARED = Path(os.environ.get("CHIPFIT_SHARED", ROOT.parent / "shared"))
LONG = "--long" in sys.argv

# The unit roundoff doubled: the distance between 1 and the next number of the type.
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# On x86-64 without VNNI, ONNX Runtime's u8 x s8 kernels saturate in 16 bits unless it is asked for the exact ones.
CPU_FLAGS = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
SATURATES = platform.machine() == "x86_64" and "vnni" not in CPU_FLAGS
onnxruntime.set_default_logger_severity(3)


class Failure(Exception):
    """What does not hold, in words."""


def require(holds, message):
    if not holds:
        raise Failure(message)


class Tally:
    """Runs checks, goes on after failures, and ends with the line `N passed, N failed`."""

    def __init__(self):
        self.passed, self.failed, self.skipped = 0, [], []

    def check(self, name, action, *arguments):
        try:
            note = action(*arguments)
        except Failure as failure:
            self._fail(name, str(failure))
        except Exception:  # A crash of the oracle or of a script is a failure of this check, not of the others.
            self._fail(name, traceback.format_exc(limit=3).strip())
        else:
            self.passed += 1
            if note:
                print(f"ok      {name}: {note}", flush=True)

    def _fail(self, name, why):
        self.failed.append(name)
        print(f"FAILED  {name}: {why}", flush=True)

    def skip(self, name, why):
        self.skipped.append(name)
        print(f"SKIPPED {name}: {why}", flush=True)

    def close(self):
        """Prints the closing line and ends the process."""
        if self.failed:
            print("failed:", ", ".join(self.failed))
        print(f"{self.passed} passed, {len(self.failed)} failed, {len(self.skipped)} skipped", flush=True)
        sys.exit(1 if self.failed or self.passed == 0 else 0)


def chipfit(*arguments):
    """Runs the command and returns its JSON document; a Failure with its messages when it fails."""
    done = subprocess.run([CHIPFIT, *map(str, arguments), "--json"], capture_output=True, text=True)
    require(done.returncode == 0, f"chipfit {' '.join(map(str, arguments))}: status {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def rewrite(model, output, *flags):
    """Rewrites a model file and returns the report; the written file has passed the checker, unless the original fails."""
    report = chipfit("rewrite", model, "-o", output, "--force", *flags)
    complaint = checker_complaint(output)
    require(complaint is None or checker_complaint(model) is not None, f"checker: {complaint}")
    return report


def checker_complaint(path):
    """What the checker with strict shape inference says against a file; by path, so that external data is found."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return str(error)
    return None


def kept_nodes(report):
    """The transposed convolutions that a rewrite left as they were."""
    return [node for node in report["nodes"] if node["form"] == "kept"]


def zoo(network, output):
    """Writes a network of the zoo."""
    done = subprocess.run([CHIPFIT, "zoo", network, "-o", str(output), "--force"], capture_output=True, text=True)
    require(done.returncode == 0, f"chipfit zoo {network}: status {done.returncode}: {done.stderr.strip()}")


def session(model, optimise=True, threads=1):
    """An ONNX Runtime session on the CPU for a path or a ModelProto."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if SATURATES:
        options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(model, feeds, optimise=True):
    """The outputs of a model in ONNX Runtime, by name."""
    runtime = session(model, optimise)
    names = [value.name for value in runtime.get_outputs()]
    return dict(zip(names, runtime.run(names, feeds)))


def relative_difference(expected, got):
    """max|a - b| / max|a|; a Failure when shapes or types differ or a non-finite value moved."""
    expected, got = np.asarray(expected), np.asarray(got)
    require(expected.shape == got.shape, f"shape {expected.shape} became {got.shape}")
    require(expected.dtype == got.dtype, f"type {expected.dtype} became {got.dtype}")
    if expected.size == 0:
        return 0.0
    a, b = expected.astype(np.float64), got.astype(np.float64)
    require(np.array_equal(np.isfinite(a), np.isfinite(b)), "non-finite values differ")
    a, b = np.where(np.isfinite(a), a, 0), np.where(np.isfinite(b), b, 0)
    return float(np.max(np.abs(a - b)) / max(np.max(np.abs(a)), np.finfo(np.float64).tiny))


def steps_apart(expected, got):
    """The largest difference between two integer tensors and how many elements differ."""
    require(expected.shape == got.shape, f"shape {expected.shape} became {got.shape}")
    require(expected.dtype == got.dtype, f"type {expected.dtype} became {got.dtype}")
    difference = np.abs(expected.astype(np.int64) - got.astype(np.int64))
    return int(difference.max(initial=0)), int(np.count_nonzero(difference))
