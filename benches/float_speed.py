"""Speed of PyTorch's f32 convolutions on one thread, for the layers of examples/float_speed.rs of chipfit-kernels.

python float_speed.py [batch] [part of a layer's name] [seconds]

Channels-last tensors as PyTorch recommends; processor time, best of the rounds; GFLOP/s, two operations per
multiply-add. The weight and input gradients are torch.ops.aten.convolution_backward with one output asked for.
"""
import sys
import time

import torch

torch.set_num_threads(1)
BATCH = int(sys.argv[1]) if len(sys.argv) > 1 else 32
ONLY = sys.argv[2] if len(sys.argv) > 2 else ""
SECONDS = float(sys.argv[3]) if len(sys.argv) > 3 else 0.2
# size, in channels, out channels, kernel, stride, groups
LAYERS = [
    (32, 3, 16, 3, 1, 1), (32, 16, 16, 3, 1, 1), (32, 16, 32, 3, 2, 1), (32, 16, 32, 1, 2, 1), (16, 32, 32, 3, 1, 1),
    (16, 32, 64, 3, 2, 1), (16, 32, 64, 1, 2, 1), (8, 64, 64, 3, 1, 1), (32, 3, 64, 3, 1, 1), (32, 64, 64, 3, 1, 1),
    (32, 64, 128, 3, 2, 1), (32, 64, 128, 1, 2, 1), (16, 128, 128, 3, 1, 1), (16, 128, 256, 3, 2, 1),
    (16, 128, 256, 1, 2, 1), (8, 256, 256, 3, 1, 1), (8, 256, 512, 3, 2, 1), (8, 256, 512, 1, 2, 1),
    (4, 512, 512, 3, 1, 1), (32, 64, 64, 3, 1, 64), (32, 64, 64, 3, 2, 64), (8, 256, 256, 3, 1, 256),
    (1, 512, 10, 1, 1, 1), (1, 512, 1000, 1, 1, 1),
]


def best(work):
    begin, least, rounds = time.thread_time(), float("inf"), 0
    while rounds < 3 or time.thread_time() - begin < SECONDS:
        start = time.thread_time()
        work()
        least = min(least, time.thread_time() - start)
        rounds += 1
    return least


print(f"PyTorch {torch.__version__}, batch {BATCH}, GFLOP/s: forward, input gradient, weight gradient")
for size, inputs, outputs, kernel, stride, groups in LAYERS:
    kind = "depthwise " if groups > 1 else ""
    name = f"{kind}{kernel}x{kernel}/{stride} {inputs}->{outputs} at {size}"
    if ONLY not in name:
        continue
    with torch.no_grad():
        if size == 1:
            x, w, b = torch.rand(BATCH, inputs), torch.rand(outputs, inputs), torch.rand(outputs)
            dy = torch.rand(BATCH, outputs)
            works = [lambda: torch.addmm(b, x, w.t()), lambda: dy @ w, lambda: dy.t() @ x]
            macs = BATCH * inputs * outputs
        else:
            last = torch.channels_last
            x = torch.rand(BATCH, inputs, size, size).contiguous(memory_format=last)
            w = torch.rand(outputs, inputs // groups, kernel, kernel).contiguous(memory_format=last)
            b = torch.rand(outputs)
            conv = lambda: torch.conv2d(x, w, b, stride, kernel // 2, 1, groups)
            dy = torch.rand_like(conv())
            back = lambda mask: torch.ops.aten.convolution_backward(
                dy, x, w, None, [stride] * 2, [kernel // 2] * 2, [1, 1], False, [0, 0], groups, mask)
            works = [conv, lambda: back([True, False, False]), lambda: back([False, True, False])]
            macs = dy.numel() * kernel * kernel * inputs // groups
        rates = [2 * macs / best(work) / 1e9 for work in works]
    print(f"{name:30} " + " ".join(f"{rate:7.1f}" for rate in rates))
