"""Real pictures without a picture library: PNG files of 8 bits a channel, decoded by the standard's filters.

`load(name, height, width)` returns float32 [1, 3, height, width] in 0..1, resized by averaging and repetition.
"""

import functools
import struct
import zlib

import numpy as np

from oracle import DATA

CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}


def decode_png(data):
    """The pixels [height, width, channels] of a non-interlaced PNG of 8 bits a channel, without palette."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError("not a PNG file")
    at, header, packed = 8, None, []
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            header = struct.unpack(">IIBBBBB", body)
        elif kind == b"IDAT":
            packed.append(body)
        at += 12 + length
    width, height, depth, colour, _, _, interlaced = header
    if depth != 8 or colour not in CHANNELS or interlaced:
        raise ValueError(f"PNG with depth {depth}, colour type {colour}, interlace {interlaced}")
    n_channels = CHANNELS[colour]
    rows = np.frombuffer(zlib.decompress(b"".join(packed)), np.uint8).reshape(height, 1 + width * n_channels)
    pixels = np.zeros((height, width, n_channels), np.uint8)
    above = np.zeros((width, n_channels), np.uint8)
    for y in range(height):
        above = unfilter(rows[y, 0], rows[y, 1:].reshape(width, n_channels), above)
        pixels[y] = above
    return pixels


def unfilter(kind, row, above):
    """One row, given the decoded row above it (PNG, section 9: none, sub, up, average, Paeth)."""
    if kind == 0:
        return row.copy()
    if kind == 1:
        return np.cumsum(row, axis=0, dtype=np.uint8)
    if kind == 2:
        return row + above
    out = np.zeros_like(row)
    left = upper_left = [0] * row.shape[1]
    for x, (values, tops) in enumerate(zip(row.tolist(), above.tolist())):
        if kind == 3:
            left = [(value + (a + b) // 2) & 255 for value, a, b in zip(values, left, tops)]
        else:
            left = [(value + paeth(a, b, c)) & 255 for value, a, b, c in zip(values, left, tops, upper_left)]
            upper_left = tops
        out[x] = left
    return out


def paeth(left, above, upper_left):
    guess = left + above - upper_left
    distances = (abs(guess - left), abs(guess - above), abs(guess - upper_left))
    return (left, above, upper_left)[distances.index(min(distances))]


def resize(pixels, height, width):
    """Area average for whole factors, else the nearest pixel."""
    rows = (np.arange(height) * pixels.shape[0]) // height
    columns = (np.arange(width) * pixels.shape[1]) // width
    sums = np.add.reduceat(np.add.reduceat(pixels.astype(np.float64), np.unique(rows), axis=0), np.unique(columns), axis=1)
    counts = np.diff(np.append(np.unique(rows), pixels.shape[0]))[:, None] * np.diff(np.append(np.unique(columns), pixels.shape[1]))[None]
    means = sums / counts[..., None]
    return means[np.unique(rows, return_inverse=True)[1]][:, np.unique(columns, return_inverse=True)[1]]


@functools.cache
def pixels_of(name):
    if name.endswith(".jpg"):  # Only in the long run, whose environment has a JPEG decoder.
        from PIL import Image

        return np.asarray(Image.open(DATA / "foolbox" / name).convert("RGB"))
    return decode_png((DATA / "pictures" / f"{name}.png").read_bytes())


def load(name, height, width):
    """The picture NAME.png, or a .jpg of foolbox, as float32 [1, 3, height, width] in 0..1."""
    pixels = pixels_of(name)
    colour = pixels[..., :3] if pixels.shape[2] >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
    return (resize(colour, height, width).transpose(2, 0, 1)[None] / 255).astype(np.float32)
