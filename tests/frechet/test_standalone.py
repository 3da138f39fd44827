"""The core of the room needs torch, numpy and jaxtyping: it is imported and used where all else is refused."""

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"

CODE = """
import sys

BLOCKED = {"transformers", "diffusers", "scipy", "PIL", "einops", "safetensors"}
BLOCKED |= {"accelerate", "tokenizers", "tyro", "rich"}


class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED or (name.startswith("diptych.") and name.split(".")[1] != "frechet"):
            raise ImportError(f"{name} is blocked")


sys.meta_path.insert(0, Block())
import importlib, pathlib, pkgutil, torch
import diptych.frechet
from diptych.frechet import Moments, frechet_distance

names = sorted(module.name for module in pkgutil.iter_modules(diptych.frechet.__path__))
for name in names:
    importlib.import_module(f"diptych.frechet.{name}")
a, b = Moments(4), Moments(4)
a.update(torch.randn(9, 4))
b.update(torch.randn(9, 4) + 1)
assert frechet_distance(a, b) > 0
print(len(names), sorted(BLOCKED & set(sys.modules)), "diptych.models" in sys.modules)
"""


def test_the_room_stands_alone():
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env={"PYTHONPATH": str(SOURCE)})
    assert run.returncode == 0, run.stderr
    num_modules, rest = run.stdout.strip().split(" ", 1)
    assert int(num_modules) >= 7
    assert rest == "[] False"
