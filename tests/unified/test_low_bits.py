"""Weights of 8 bits: near full precision, smaller, not saved; what is refused."""

import sys

import numpy as np
import pytest
import torch

import diptych
from diptych.cli.main import explain, main

WITHOUT = {"torchao": None, "torchao.quantization": None}


def stored(part):
    """Bytes of a part's weights, of whole numbers and their scales too."""
    total = 0
    for value in part.parameters():
        inner = [getattr(value, name) for name in getattr(value, "tensor_data_names", [])] or [value]
        total += sum(each.numel() * each.element_size() for each in inner)
    return total


def test_eight_bits_change_little_and_take_less_memory():
    pytest.importorskip("torchao")
    full, low = (diptych.load(device="cpu", bits=bits) for bits in (None, 8))
    assert low.bits == 8 and stored(low.backbone) < 0.45 * stored(full.backbone)
    prompts = [(diptych.Text(text),) for text in ("a red circle above a blue square", "three green stars")]
    with torch.no_grad():
        expected, given = (model.condition(prompts, model.images.size)[0] for model in (full, low))
    assert 1e-5 < ((given - expected).norm() / expected.norm()).item() < 0.02
    image, other = (model.generate_image("a red circle", seed=1)[0] for model in (full, low))
    difference = np.abs(np.asarray(image, int) - np.asarray(other, int))
    assert 0 < difference.mean() < 3
    question = [image, "What colour is the circle?"]
    assert low.generate_text(question) == full.generate_text(question)
    with pytest.raises(ValueError, match=r"weights of 8 bits is not saved: load it without bits, save that"):
        low.save("unused")


def test_four_bits_on_a_cpu_are_refused():
    pytest.importorskip("torchao")
    with pytest.raises(ValueError, match=r"4-bit weights need a GPU of NVIDIA and bfloat16, the model is on cpu in fl"):
        diptych.load(device="cpu", bits=4)


def test_missing_torchao_is_told_with_its_extra(monkeypatch):
    for name, module in WITHOUT.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(ModuleNotFoundError, match=r"8-bit weights need the package torchao: pip .*diptych\[quant"):
        diptych.load(device="cpu", bits=8)
    assert "diptych[quant]" in explain(ModuleNotFoundError("pip install 'diptych[quant]'", name="torchao"))


def test_other_bits_and_offload_are_refused(capsys):
    with pytest.raises(ValueError, match="bits must be 8 or 4, got 3"):
        diptych.load(device="cpu", bits=3)
    with pytest.raises(ValueError, match="bits and memory offload do not go together"):
        diptych.load(device="cpu", bits=8, memory="offload")
    assert main(["generate", "a red circle", "--bits", "5"]) == 2
    assert "--bits" in capsys.readouterr().err
