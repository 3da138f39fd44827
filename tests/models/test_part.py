import sys
import types

import pytest
from torch import nn

from diptych.models.autoencoders.pixels import PixelSpace
from diptych.models.part import build_part, part_kind


def test_a_part_is_built_again_from_its_config():
    space = build_part(PixelSpace(scale=0.5).config_dict())
    assert isinstance(space, PixelSpace) and space.scale.unique().item() == 0.5


def test_parts_of_other_packages_only_when_imported_before():
    config = {"kind": "my_parts_for_this_test:Head", "width": 3}
    with pytest.raises(ValueError, match=r"is not a part of diptych. Import my_parts_for_this_test first"):
        build_part(config)
    module = types.ModuleType("my_parts_for_this_test")
    module.Head = type("Head", (nn.Linear,), {"__init__": lambda self, width: nn.Linear.__init__(self, width, 1)})
    sys.modules["my_parts_for_this_test"] = module
    try:
        assert build_part(config).in_features == 3
    finally:
        del sys.modules["my_parts_for_this_test"]


def test_nothing_but_modules_is_called():
    with pytest.raises(ValueError, match=r"'os:system' is no nn.Module class of os"):
        build_part({"kind": "os:system", "command": "true"})
    with pytest.raises(ValueError, match=r"'diptych.models.part:build_part' is no nn.Module class"):
        build_part({"kind": "diptych.models.part:build_part", "config": {}})


def test_messages():
    with pytest.raises(ValueError, match=r"needs a kind 'package.module:Class', got None"):
        build_part({})
    with pytest.raises(ValueError, match=r"No module named 'diptych.models.telepathy'.*newer version"):
        build_part({"kind": "diptych.models.telepathy:Mind"})
    assert part_kind(PixelSpace) == "diptych.models.autoencoders.pixels:PixelSpace"
