"""One peer of the simulated processor, as a worker: builds ResNet-18, then times a round whenever a line arrives.

    processor_peers.py onnxruntime MODEL BATCH THREADS
    processor_peers.py torch-fp32|torch-int8|pytorchfi cifar|imagenet BATCH THREADS

Prints `ready DESCRIPTION`, then for every line on standard input the inferences per second of one round (`SECONDS` of
processor time divided by the number of threads). Inputs are random: a network's speed does not depend on them.
"""

import copy
import sys
import time

import numpy as np

SECONDS = 1.0


def onnxruntime_peer(model, batch, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    x = np.random.default_rng(0).uniform(0, 255, [batch, *entry.shape[1:]]).astype(np.float32)
    return (lambda: session.run(None, {entry.name: x})), f"ONNX Runtime {onnxruntime.__version__}"


def torch_network(kind):
    import torch
    import torchvision

    torch.manual_seed(0)
    net = torchvision.models.resnet18(weights=None)
    if kind == "cifar":
        net.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        net.maxpool = torch.nn.Identity()
        net.fc = torch.nn.Linear(512, 10)
    return torch, net.eval(), 32 if kind == "cifar" else 224


def torch_peer(kind, batch, threads, int8):
    torch, net, side = torch_network(kind)
    torch.set_num_threads(threads)
    x = torch.randn(batch, 3, side, side)
    if int8:
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        # `onednn` is the engine of the published figures; `x86` picks between it and fbgemm by layer.
        torch.backends.quantized.engine = int8
        net = prepare_fx(net, get_default_qconfig_mapping(int8), (x[:1],))
        net(x[:1])
        net = convert_fx(net)
    return (lambda: net(x)), f"PyTorch {torch.__version__} {int8 or 'fp32'}"


def pytorchfi_peer(kind, batch, threads):
    """One neuron per picture set to a random value, declared anew for every batch, as PyTorchFI's documentation does."""
    import random

    torch, net, side = torch_network(kind)
    torch.set_num_threads(threads)
    from pytorchfi.core import fault_injection
    from pytorchfi.neuron_error_models import random_neuron_inj_batched

    injector = fault_injection(net, batch, input_shape=[3, side, side], layer_types=[torch.nn.Conv2d], use_cuda=False)
    random.seed(0)
    x = torch.randn(batch, 3, side, side)

    def once():
        corrupted = random_neuron_inj_batched(injector, min_val=-1, max_val=1)
        corrupted(x)

    return once, "PyTorchFI 0.6.0, random_neuron_inj_batched"


def main():
    what, model, batch, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if what == "onnxruntime":
        once, description = onnxruntime_peer(model, batch, threads)
    else:
        import torch

        torch.set_grad_enabled(False)
        if what == "torch-fp32":
            once, description = torch_peer(model, batch, threads, None)
        elif what.startswith("torch-int8-"):
            once, description = torch_peer(model, batch, threads, what.removeprefix("torch-int8-"))
        else:
            once, description = pytorchfi_peer(model, batch, threads)
    once()
    once()
    print("ready", description, flush=True)
    for _ in sys.stdin:
        count, begin, wall = 0, time.process_time(), time.perf_counter()
        while time.process_time() - begin < SECONDS:
            once()
            count += 1
        spent = time.process_time() - begin if threads == 1 else time.perf_counter() - wall
        print(count * batch / spent, flush=True)


if __name__ == "__main__":
    main()
