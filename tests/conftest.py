"""Settings for the whole suite: shapes of public tensor arguments are checked at run time, threads are few."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

if os.environ.get("DIPTYCH_CHECK_SHAPES", "1") == "1":
    # The built-in world takes hardly any arrays and calls its functions millions of times.
    rooms = {path.stem for path in (Path(__file__).parents[1] / "src" / "diptych").glob("[a-z]*")} - {"scenes"}
    install_import_hook([f"diptych.{room}" for room in sorted(rooms)], "beartype.beartype")

import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real pictures, prompts and weights; tests that need it skip where it is absent."""
    folder = os.environ.get("DIPTYCH_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DIPTYCH_TEST_DATA names no folder of real data")
    return Path(folder)
