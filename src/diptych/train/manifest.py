"""What is about to be trained: every part with parameters, dtype, and the stages that train it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from torch import nn

from diptych.models.adapters import has_adapters, is_adapter
from diptych.train.parts import matching_parts, parts_of
from diptych.train.recipe import Recipe


@dataclass(frozen=True)
class PartRow:
    """One part of the model.

    Attributes:
        name: as stages name it.
        module: its class.
        parameters: their number; those shared with an earlier part are counted there.
        trainable: how many of them learn in a stage that trains the part: all, or those of its adapters.
        dtypes: of its parameters.
        stages: for every stage of the recipe whether it trains the part.
    """

    name: str
    module: str
    parameters: int
    trainable: int
    dtypes: tuple[str, ...]
    stages: Mapping[str, bool]


def describe_parts(model: nn.Module, recipe: Recipe[Any]) -> list[PartRow]:
    """The manifest's rows, in the order of the model's parts.

    Raises:
        ValueError: a stage names a part that the model does not have.
    """
    parts = parts_of(model)
    trained = {
        name: matching_parts(stage.trainable, parts, f"stages.{name}.trainable")
        for name, stage in recipe.stages.items()
    }
    rows = []
    seen: set[int] = set()
    for name, part in parts.items():
        members = [part] if isinstance(part, nn.Parameter) else list(part.parameters())
        own = [parameter for parameter in members if id(parameter) not in seen]
        seen |= {id(parameter) for parameter in own}
        learning = own
        if isinstance(part, nn.Module) and has_adapters(part):
            adapters = {id(parameter) for key, parameter in part.named_parameters() if is_adapter(key)}
            learning = [parameter for parameter in own if id(parameter) in adapters]
        rows.append(
            PartRow(
                name=name,
                module=type(part).__name__,
                parameters=sum(parameter.numel() for parameter in own),
                trainable=sum(parameter.numel() for parameter in learning),
                dtypes=tuple(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in members})),
                stages={stage: name in trained[stage] for stage in recipe.stages},
            )
        )
    return rows


def manifest_dict(rows: list[PartRow], recipe: Recipe[Any]) -> dict[str, Any]:
    """The manifest as JSON values."""
    return {
        "recipe": recipe.name,
        "parameters": sum(row.parameters for row in rows),
        "trained_parameters": {
            stage: sum(row.trainable for row in rows if row.stages[stage]) for stage in recipe.stages
        },
        "parts": [asdict(row) for row in rows],
    }


def manifest_table(rows: list[PartRow], recipe: Recipe[Any]) -> Table:
    """The manifest for a person."""
    table = Table(title=f"{recipe.name}: what is trained", title_justify="left", show_footer=True)
    table.add_column("part", footer="total")
    table.add_column("module")
    table.add_column("parameters", justify="right", footer=f"{sum(row.parameters for row in rows):,}")
    table.add_column("dtype")
    for stage in recipe.stages:
        total = sum(row.trainable for row in rows if row.stages[stage])
        table.add_column(stage, justify="right", footer=f"{total:,}")
    for row in rows:
        learns = "[green]trained[/green]" if row.trainable == row.parameters else "[green]adapters[/green]"
        states = [learns if row.stages[stage] else "[dim]frozen[/dim]" for stage in recipe.stages]
        table.add_row(row.name, row.module, f"{row.parameters:,}", ", ".join(row.dtypes) or "-", *states)
    return table
