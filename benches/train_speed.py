"""Time of one fp32 training step (forward and backward, no optimizer) in PyTorch, beside `examples/speed` of chipfit-train.

python train_speed.py SPEED_BINARY RESNET8.int8.onnx [batch] [repeats]

Both networks as the integer program has them: batch norm folded, so biased convolutions and ReLU; channels-last tensors,
as PyTorch recommends on CPUs. Wall-clock and processor time, best of the repeats, ours and PyTorch's in turn.
"""

import json
import resource
import subprocess
import sys
import time

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride, kernel_of_shortcut=1):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x):
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


def resnet(widths, blocks):
    layers = [nn.Conv2d(3, widths[0], 3, 1, 1), nn.ReLU()]
    inputs = widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            layers.append(Block(inputs, width, 2 if stage and not block else 1))
            inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def spent():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(net, batch, threads, repeats):
    torch.set_num_threads(threads)
    net = net.to(memory_format=torch.channels_last)
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (batch,))
    best = [float("inf")] * 2
    for _ in range(repeats + 2):
        net.zero_grad(set_to_none=True)
        begin, before = time.perf_counter(), spent()
        nn.functional.cross_entropy(net(x), y).backward()
        best = [min(best[0], time.perf_counter() - begin), min(best[1], spent() - before)]
    return {"step_ms": 1e3 * best[0], "processor_ms": 1e3 * best[1]}


def main():
    binary, resnet8 = sys.argv[1:3]
    batch, repeats = (int(a) for a in (sys.argv[3:] + ["64", "5"])[:2]) if len(sys.argv) > 4 else (64, 5)
    for name, model, net in [
        ("resnet8", resnet8, resnet([16, 32, 64], 1)),
        ("resnet18", "resnet18", resnet([64, 128, 256, 512], 2)),
    ]:
        for threads in (1, 2):
            ours = {}
            theirs = {}
            for _ in range(3):
                options = [f"batch={batch}", f"threads={threads}", f"repeats={repeats}"]
                line = json.loads(subprocess.check_output([binary, model, *options]))
                other = measure(net, batch, threads, repeats)
                for key in ("step_ms", "processor_ms"):
                    ours[key] = min(ours.get(key, float("inf")), line[key])
                    theirs[key] = min(theirs.get(key, float("inf")), other[key])
            print(json.dumps({"network": name, "threads": threads, "chipfit": ours, "pytorch": theirs}), flush=True)


if __name__ == "__main__":
    main()
