"""What the tests of ``diptych fd`` share: pictures, folders of them, the command, and the moments it should find."""

import json

import numpy as np
import torch
from PIL import Image

from diptych.cli.main import main
from tests.cli import fd_network

TINY, OTHER = "tiny=tests.cli.fd_network:tiny", "other=tests.cli.fd_network:other"


def images(num, seed, size=8, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (num, size, size, 3), dtype=np.uint8)


def write_folder(folder, arrays, suffix="png"):
    folder.mkdir(parents=True)
    for index, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{index:04d}.{suffix}")
    return folder


def options(tmp_path):
    return ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]


def fd(tmp_path, *words, features=TINY):
    return main(["fd", *map(str, words), "--features", features, *options(tmp_path)])


def fails(capsys, tmp_path, *words, features=TINY):
    assert fd(tmp_path, *words, features=features) == 2
    return " ".join(capsys.readouterr().err.split())


def written(tmp_path):
    return json.loads((tmp_path / "out" / "fd.json").read_text())


def moments_of(arrays, features=None):
    features = features or fd_network.tiny()
    moments = features.new_moments()
    moments.update(features(torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)))
    return moments
