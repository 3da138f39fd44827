"""Two processes have the gradient of one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from gathered_step import train

from diptych.frechet.gather import gather_features

SCRIPT = Path(__file__).with_name("gathered_step.py")


@pytest.mark.process
def test_two_processes_equal_one(tmp_path):
    command = [sys.executable, str(SCRIPT)]
    processes = [
        subprocess.Popen([*command, str(rank), "2", str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    one = train(0, 1, True)
    for output in outputs:
        for result in json.loads(output):  # gradients averaged, then summed
            for name, values in result.items():
                torch.testing.assert_close(values, one[name], rtol=1e-10, atol=1e-12)


def test_without_processes_features_stay_as_they_are():
    features = torch.ones(2, 3)
    assert gather_features(features) is features
