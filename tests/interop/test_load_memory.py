"""Loading a released folder takes little more memory than its parameters."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.interop.blip3o_folder import WIDTH, write_blip3o, write_weights

pytest.importorskip("transformers")

WIDE = 300_000
PROGRAM = """
import sys
from pathlib import Path
import torch
from diptych.interop.blip3o import load_blip3o

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

load_blip3o(sys.argv[1])  # what importing takes is not counted
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
model = load_blip3o(sys.argv[2], dtype=torch.bfloat16)
print(memory("VmHWM") - before, sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read as Linux tells it")
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_peak_memory_is_parameters_and_at_most_the_largest_shard(tmp_path, suffix):
    write_blip3o(tmp_path / "small")
    _, weights = write_blip3o(tmp_path / "large", suffix=suffix)
    config = json.loads((tmp_path / "large" / "config.json").read_text())
    (tmp_path / "large" / "config.json").write_text(json.dumps({**config, "intermediate_size": WIDE}))
    for layer in range(2):
        for name, shape in (("gate", (WIDE, WIDTH)), ("up", (WIDE, WIDTH)), ("down", (WIDTH, WIDE))):
            weights[f"model.layers.{layer}.mlp.{name}_proj.weight"] = torch.zeros(shape)
    count = len(weights) // 2
    stored = {key: value.bfloat16() for key, value in weights.items()}
    write_weights(tmp_path / "large", stored, suffix, num_shards=count)
    shard = max(file.stat().st_size for file in (tmp_path / "large").glob(f"*-of-{count:05d}{suffix}"))
    assert shard > 19_000_000
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "small"), str(tmp_path / "large")]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    taken, parameters = map(int, output.split())
    assert parameters > 2.5 * shard
    assert taken - parameters < 1.15 * shard
