"""Accuracy of a classifier of the zoo, with loaded weights, on real pictures in ONNX Runtime.

    zoo_accuracy.py NETWORK MODEL.onnx PICTURES [--at-least FRACTION] [--limit N]

NETWORK is squeezenet1.1, efficientnet-lite0 or resnet8 and says how pictures are prepared. PICTURES is a folder of
`imagenet_NN_LABEL.jpg` (those of the foolbox package) or, for resnet8, a tar archive of `test/CLASS/NNNN.jpg`.
Prints one line `NETWORK: CORRECT/TOTAL correct`; exit status 1 where the fraction lies below --at-least.
--limit N takes N pictures of an archive, spread evenly over all of it.
"""

import argparse
import io
import pathlib
import re
import sys
import tarfile

import numpy as np
import onnxruntime
from PIL import Image

CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


# The usual evaluation crop: the shorter side to 256, then the middle 224x224. EfficientNet's own preparation
# resizes bicubically, the older networks' bilinearly.
RESIZING = {"squeezenet1.1": Image.BILINEAR, "efficientnet-lite0": Image.BICUBIC}


def crop(picture, resizing):
    width, height = picture.size
    short = min(width, height)
    picture = picture.resize((round(width * 256 / short), round(height * 256 / short)), resizing)
    left, top = ((length - 224) // 2 for length in picture.size)
    return picture.crop((left, top, left + 224, top + 224))


def prepare(network, picture):
    """A picture as the network's input [3, height, width]."""
    picture = picture.convert("RGB")
    if network in RESIZING:
        picture = crop(picture, RESIZING[network])
    pixels = np.asarray(picture, np.float32)
    if network == "squeezenet1.1":
        pixels = pixels[:, :, ::-1] - np.array([103.939, 116.779, 123.68], np.float32)
    elif network == "efficientnet-lite0":
        pixels = (pixels - 127) / 128
    return pixels.transpose(2, 0, 1)


def imagenet_samples(folder):
    for path in sorted(pathlib.Path(folder).glob("imagenet_*.jpg")):
        label = re.fullmatch(r"imagenet_\d+_(\d+)\.jpg", path.name)
        if label:
            yield Image.open(path), int(label[1])


def cifar_samples(archive, limit):
    with tarfile.open(archive) as tar:
        members = sorted((m for m in tar if m.isfile() and re.search(r"(^|/)test/", m.name)), key=lambda m: m.name)
        step = max(1, len(members) // limit) if limit else 1
        for member in members[::step]:
            label = CIFAR_CLASSES.index(member.name.split("/")[-2])
            yield Image.open(io.BytesIO(tar.extractfile(member).read())), label


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=["squeezenet1.1", "efficientnet-lite0", "resnet8"])
    parser.add_argument("model")
    parser.add_argument("pictures")
    parser.add_argument("--at-least", type=float, default=0.0)
    parser.add_argument("--limit", type=int, default=0)
    options = parser.parse_args()

    session = onnxruntime.InferenceSession(options.model, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    if options.network == "resnet8":
        samples = cifar_samples(options.pictures, options.limit)
    else:
        samples = imagenet_samples(options.pictures)
    correct = total = 0
    for picture, label in samples:
        (logits,) = session.run(None, {source.name: prepare(options.network, picture)[None]})
        correct += int(logits[0].argmax() == label)
        total += 1
    if total == 0:
        sys.exit(f"no pictures in '{options.pictures}'")
    print(f"{options.network}: {correct}/{total} correct")
    if correct < options.at_least * total:
        sys.exit(f"{options.network}: fewer than {options.at_least:.1%} of the pictures are recognised")


if __name__ == "__main__":
    main()
