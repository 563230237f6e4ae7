"""Pictures as files, for tests of the index and of matches."""

import io
import os
import struct
import tarfile
import zlib

import numpy as np
import torch
from PIL import Image

from cryptomnesia.matching import ImageIndex, Tiles


def save(path, picture):
    """Write a picture (H, W, 3) in [0, 1], an array or a tensor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.asarray(picture) * 255).round().astype(np.uint8)).save(path)


def tensor(path):
    """Read a picture as a tensor (3, H, W) in [0, 1]."""
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def stopped_build(images, folder, after):
    def stop(done, total):
        if done >= after:
            os._exit(1)

    ImageIndex.build(images, folder, Tiles(), shard=5, progress=stop)


def picture(seed, side=48):
    """A smooth random picture as PIL image."""
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


def encoded(image, kind="PNG", **options):
    """The bytes of a picture file."""
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def write_tar(path, members):
    """Write a tar file of name → content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))


def png_of(values, colour_type):
    """A PNG file of sixteen bits a value, which Pillow does not write for colours; colour type 2 is RGB, 0 is grey."""
    height, width = values.shape[:2]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0),
        b"IDAT": zlib.compress(lines),
        b"IEND": b"",
    }
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
