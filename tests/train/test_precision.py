"""What ``precision`` means on a device."""

import pytest
import torch

from diptych.train import precision
from diptych.train.precision import autocast_dtype


def test_what_is_named_is_taken():
    assert autocast_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert autocast_dtype("float32", torch.device("cuda")) == torch.float32


@pytest.mark.parametrize(("has_units", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_on_a_cpu_asks_for_its_instructions(monkeypatch, has_units, expected):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: has_units)
    assert autocast_dtype("auto", torch.device("cpu")) == expected


def test_the_cpu_can_be_asked():
    assert precision.cpu_has_bfloat16() in (True, False)
