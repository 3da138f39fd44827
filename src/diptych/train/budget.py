"""One budget for recipes of any kind: how many steps each stage gets so that all runs cost the same.

The stages of a recipe keep their proportions; only their numbers of steps change. What a step costs is its batch size
(a budget of examples) or was measured (FLOPs, minutes).
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from diptych.train.nearest import nearest
from diptych.train.recipe import Recipe, Stage

BudgetKind: TypeAlias = Literal["examples", "flops", "minutes"]


@dataclass(frozen=True)
class Budget:
    """What a run may use: examples, FLOPs of its training steps, or minutes of them on the machine that measures."""

    kind: BudgetKind
    amount: float

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Reads ``examples=20000``, ``flops=1e15`` or ``minutes=3``.

        Raises:
            ValueError: another kind, or an amount that is no positive number.
        """
        kind, _, amount = text.partition("=")
        if kind not in get_args(BudgetKind):
            raise ValueError(
                f"a budget is examples=N, flops=F or minutes=M, got {text!r}. {nearest(kind, get_args(BudgetKind))}"
            )
        try:
            value = float(amount.replace("_", ""))
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"the amount of a budget must be a positive number, got {text!r}. Such as {kind}=1000.")
        return cls(kind, value)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.kind}={self.amount:g}" if self.kind != "examples" else f"{self.kind}={self.amount:.0f}"


def num_examples(recipe: Recipe[Any], uncounted: Collection[str] = ()) -> int:
    """Examples of all stages but the ``uncounted`` ones."""
    return sum(s.num_steps * s.batch_size for name, s in recipe.stages.items() if name not in uncounted)


def within_budget(
    recipe: Recipe[Any], budget: Budget, step_costs: Mapping[str, float], uncounted: Collection[str] = ()
) -> Recipe[Any]:
    """The recipe with as many steps as the budget pays for, in the proportions that its stages have.

    Steps are rounded, and the last counted stage takes what the others leave, so a run is off by half of its step at
    most. Where stages get shorter, so does their warm-up.

    Args:
        step_costs: of one step of each counted stage, in the unit of the budget.
        uncounted: stages that the budget does not pay for; they stay as they are.

    Raises:
        ValueError: no stage is counted, or a stage would get no step.
    """
    counted = [name for name in recipe.stages if name not in uncounted]
    if not counted:
        raise ValueError(f"{recipe.name}: all stages ({', '.join(recipe.stages)}) are uncounted. Count one at least.")
    total = sum(recipe.stages[name].num_steps * step_costs[name] for name in counted)
    factor = budget.amount / total
    steps = {name: math.floor(recipe.stages[name].num_steps * factor + 0.5) for name in counted[:-1]}
    left = budget.amount - sum(count * step_costs[name] for name, count in steps.items())
    steps[counted[-1]] = math.floor(left / step_costs[counted[-1]] + 0.5)
    for name, count in steps.items():
        if count < 1:
            raise ValueError(
                f"the budget {budget} leaves no step for the stage {name!r} of {recipe.name}, where one costs "
                f"{step_costs[name]:.4g} {budget.kind}; the whole recipe as it is costs {total:.4g}. Give more."
            )
    stages = {name: _with_steps(s, steps[name]) if name in steps else s for name, s in recipe.stages.items()}
    return replace(recipe, stages=stages)


def _with_steps(stage: Stage, num_steps: int) -> Stage:
    shorter = min(1.0, num_steps / stage.num_steps)
    optimizer = replace(stage.optimizer, warmup_steps=round(stage.optimizer.warmup_steps * shorter))
    return replace(stage, num_steps=num_steps, optimizer=optimizer)
