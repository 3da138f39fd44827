"""What objectives keep between steps: begun once, told of every step, logged, saved, and taken up again."""

import json
import shutil
from dataclasses import replace

import torch
from test_loop import assert_equal_weights, quiet, weights_of
from toy_task import toy_recipe, toy_task

from diptych.train.loop import train


class Counting:
    """Counts steps, and remembers how its stages began."""

    def __init__(self):
        self.begun = []
        self.steps = torch.zeros((), dtype=torch.int64)

    def begin_stage(self, name, stage, is_new):
        self.begun.append((name, is_new))
        if is_new:
            self.steps.zero_()

    def after_step(self):
        self.steps += 1

    def metrics(self):
        return {"counted": float(self.steps)}

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"].clone()


def test_a_companion_goes_on_where_it_was_saved(tmp_path):
    recipe = toy_recipe()
    recipe = replace(recipe, checkpoints=replace(recipe.checkpoints, every_steps=3, keep=20))
    straight = Counting()
    task = toy_task(recipe, companion=straight)
    train(task, recipe, tmp_path / "run", console=quiet())
    names = list(recipe.stages)
    lengths = [recipe.stages[name].num_steps for name in names]
    assert straight.begun == [(name, True) for name in names] and straight.steps == lengths[-1]
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["counted"] == line["stage_step"] for line in logged if line["event"] == "train")

    shutil.copytree(tmp_path / "run", tmp_path / "resumed")
    for folder in (tmp_path / "resumed" / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > lengths[0] + 3:
            shutil.rmtree(folder)
    resumed = Counting()
    other = toy_task(recipe, companion=resumed)
    train(other, recipe, tmp_path / "resumed", resume=True, console=quiet())
    assert resumed.begun == [(names[1], False)] and resumed.steps == lengths[-1]
    assert_equal_weights(weights_of(other.model), weights_of(task.model))
