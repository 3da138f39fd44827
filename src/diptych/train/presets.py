"""Recipes by name: ``blip3o:tiny``, any importable ``module:function``, or the path of a recipe.json."""

import inspect
import pkgutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from diptych.train.nearest import nearest
from diptych.train.recipe import Recipe, validate
from diptych.train.serialization import from_json

_PACKAGE = "diptych.recipes"


def recipe_names() -> list[str]:
    """The papers that ship with recipes: modules of ``diptych.recipes``."""
    package = import_module(_PACKAGE)
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


def presets_of(module: ModuleType) -> dict[str, Callable[[], Recipe[Any]]]:
    """The presets of a recipe file: its own public functions that need no argument."""
    presets: dict[str, Callable[[], Recipe[Any]]] = {}
    for name, function in vars(module).items():
        if name.startswith("_") or not inspect.isfunction(function) or function.__module__ != module.__name__:
            continue
        parameters = inspect.signature(function).parameters.values()
        if all(parameter.default is not inspect.Parameter.empty for parameter in parameters):
            presets[name] = function
    return presets


def load_preset(name: str) -> Recipe[Any]:
    """The recipe called ``name``, validated.

    Args:
        name: ``paper:preset`` of ``diptych.recipes``, any importable ``module:function``, or the path of a ``.json``.

    Raises:
        ValueError: unknown recipe or preset (with the nearest known names), or a function that returns no Recipe.
        FileNotFoundError: the named JSON file does not exist.
    """
    if name.endswith(".json"):
        recipe = _load_file(Path(name))
    else:
        module_name, _, preset = name.partition(":")
        module = _import_recipe_module(module_name)
        presets = presets_of(module)
        if preset not in presets:
            given = f"has no preset {preset!r}" if preset else "needs a preset"
            options = [f"{module_name}:{option}" for option in presets]
            raise ValueError(f"the recipe {module_name!r} {given}. {nearest(f'{module_name}:{preset}', options)}")
        recipe = presets[preset]()
        if not isinstance(recipe, Recipe):
            raise ValueError(f"{name} must return a Recipe, got {type(recipe).__name__}.")
    validate(recipe)
    return recipe


def _load_file(path: Path) -> Recipe[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no recipe file at {path}.")
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _import_recipe_module(name: str) -> ModuleType:
    """``diptych.recipes.NAME`` if there is one, else the module ``NAME``; an import failing inside is not hidden."""
    known = recipe_names()
    if name in known:
        return import_module(f"{_PACKAGE}.{name}")
    if all(part.isidentifier() for part in name.split(".")):
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
                raise
    raise ValueError(
        f"unknown recipe {name!r}. {nearest(name, known)} Your own: any importable module:function "
        "(PYTHONPATH=. makes the current folder importable), or the path of a recipe.json."
    )
