"""PyTorch's training pass as a worker of benches/training.py.

    training_peers.py resnet8|resnet18 norm|folded BATCH THREADS

`norm`: batch normalisation in training mode, as training from scratch does. `folded`: convolutions with a bias and no
normalisation, as retraining does. A pass is forward, cross-entropy and backward in fp32, without an optimizer. Both memory
formats are tried before the first round and the faster one is kept.

Prints `ready DESCRIPTION`, then for every line on standard input the pictures per second of one round (`SECONDS` of
processor time with one thread, of the clock with more).
"""

import sys
import time

import torch
from torch import nn
from torch.nn import functional

SECONDS = 2.0


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, norm, inner, outer, stride, shortcut_norm):
        super().__init__()
        self.first, self.second = norm(inner, outer, 3, stride), norm(outer, outer, 3, 1)
        plain = stride == 1 and inner == outer
        shortcut = norm if shortcut_norm else conv_bias
        self.shortcut = nn.Identity() if plain else shortcut(inner, outer, 1, stride)

    def forward(self, x):
        return functional.relu(self.second(functional.relu(self.first(x))) + self.shortcut(x))


def conv_bias(inner, outer, kernel, stride):
    return nn.Conv2d(inner, outer, kernel, stride, kernel // 2)


def conv_norm(inner, outer, kernel, stride):
    return nn.Sequential(nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outer))


def network(name, norm):
    """ResNet-8 of MLPerf Tiny; ResNet-18 with a 3x3 stem."""
    if name == "resnet8":
        widths, repeats, shortcut_norm = [16, 32, 64], 1, False
        stem = 16
    else:
        widths, repeats, shortcut_norm = [64, 128, 256, 512], 2, True
        stem = 64
    layers = [norm(3, stem, 3, 1), nn.ReLU()]
    inner = stem
    for stage, width in enumerate(widths):
        for repeat in range(repeats):
            layers.append(Block(norm, inner, width, 2 if stage > 0 and repeat == 0 else 1, shortcut_norm))
            inner = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, 10))


def main():
    name, form, batch, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    net = network(name, conv_norm if form == "norm" else conv_bias).train()
    x, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))

    def timer():
        return time.process_time() if threads == 1 else time.perf_counter()

    def once(net, x):
        net.zero_grad(set_to_none=True)
        functional.cross_entropy(net(x), labels).backward()

    def seconds(net, x):
        once(net, x)
        once(net, x)
        begin = timer()
        once(net, x)
        return timer() - begin

    formats = {}
    for label, memory in (("channels first", torch.contiguous_format), ("channels last", torch.channels_last)):
        formats[label] = (seconds(net.to(memory_format=memory), x.to(memory_format=memory)), memory)
    best = min(formats, key=lambda label: formats[label][0])
    memory = formats[best][1]
    net, x = net.to(memory_format=memory), x.to(memory_format=memory)
    print("ready", f"PyTorch {torch.__version__} fp32, {best}", flush=True)
    for _ in sys.stdin:
        count, begin = 0, timer()
        while timer() - begin < SECONDS:
            once(net, x)
            count += 1
        print(count * batch / (timer() - begin), flush=True)


if __name__ == "__main__":
    main()
