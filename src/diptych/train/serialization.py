"""Recipes (and any nested frozen dataclasses) to JSON and back, exactly.

A config that is a choice between kinds carries ``"kind": "module:Class"``, resolved by import, so that users' own
configs need no registry. Only dataclasses are ever constructed. The type hints decide how a value is read back: tuples
come back as tuples, whole numbers written for a float as floats.
"""

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from diptych.train.nearest import nearest
from diptych.train.recipe import Recipe

FORMAT_VERSION = 1
"""Of recipe.json; a newer one is refused."""

_KIND = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def to_json(recipe: Recipe[Any]) -> str:
    """The recipe as indented JSON text."""
    return json.dumps(recipe_to_dict(recipe), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str) -> Recipe[Any]:
    """The recipe that ``to_json`` wrote.

    Raises:
        ValueError: no JSON, an unknown or missing field, a wrong type, an unknown kind, or a newer format.
    """
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the recipe is not valid JSON: {error}. Was the file cut off?") from None
    return recipe_from_dict(fields)


def recipe_to_dict(recipe: Recipe[Any]) -> dict[str, Any]:
    """The recipe as plain JSON values, with the format version first."""
    return {"format_version": FORMAT_VERSION, **encode(recipe, Recipe, "recipe")}


def recipe_from_dict(fields: Any) -> Recipe[Any]:
    """The recipe that ``recipe_to_dict`` wrote; raises as ``from_json`` does."""
    if not isinstance(fields, Mapping):
        raise ValueError(f"a recipe must be a JSON object, got {_describe(fields)}.")
    fields = dict(fields)
    version = fields.pop("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(
            f"recipe.format_version is {version}, but this diptych reads up to {FORMAT_VERSION}: "
            "the recipe was written by a newer diptych. Upgrade with pip install -U diptych."
        )
    recipe = decode(fields, Recipe, "recipe")
    assert isinstance(recipe, Recipe)
    return recipe


def kind_of(config_class: type) -> str:
    """The import path that names a config class in JSON."""
    if "<locals>" in config_class.__qualname__ or "." in config_class.__qualname__:
        raise ValueError(
            f"{config_class.__qualname__} cannot be named in JSON: define it at the top level of a module, not inside "
            "a function or class."
        )
    return f"{config_class.__module__}:{config_class.__qualname__}"


def resolve_kind(kind: Any, where: str) -> type:
    """The dataclass named by ``"module:Class"``.

    Raises:
        ValueError: the text has another form, the module or the class does not exist, or it is no dataclass.
    """
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise ValueError(f'{where}.kind must look like "package.module:Class", got {kind!r}.')
    module_name, class_name = kind.split(":")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"{where}.kind is {kind!r}, but the module {module_name!r} cannot be imported ({error}). "
            "Install the package that has it, or set PYTHONPATH."
        ) from error
    known = {name: value for name, value in vars(module).items() if _is_dataclass_type(value)}
    if class_name not in known:
        reason = "which is no dataclass" if hasattr(module, class_name) else "which does not exist"
        raise ValueError(f"{where}.kind is {kind!r}, {reason}. {nearest(class_name, known)}")
    return known[class_name]


def encode(value: Any, hint: Any, where: str) -> Any:
    """``value`` as plain JSON values; a dataclass whose class ``hint`` does not already give gets a ``kind``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields: dict[str, Any] = {} if hint is type(value) else {"kind": kind_of(type(value))}
        hints = typing.get_type_hints(type(value))
        for field in dataclasses.fields(value):
            if field.init:
                fields[field.name] = encode(getattr(value, field.name), hints[field.name], f"{where}.{field.name}")
        return fields
    if isinstance(value, Mapping):
        item_hint = get_args(hint)[1] if get_origin(hint) in (dict, Mapping) else Any
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{where}: keys must be text, got {key!r}.")
        return {key: encode(item, item_hint, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        item_hints = _item_hints(hint, len(value))
        return [encode(item, item_hints[i], f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} must be finite to be written as JSON, got {value}.")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise ValueError(
        f"{where} is a {type(value).__name__}, which a config cannot hold. "
        "Use numbers, text, tuples, dicts with text keys and dataclasses."
    )


def decode(value: Any, hint: Any, where: str) -> Any:
    """The value that ``encode`` wrote, checked against ``hint``; raises ``ValueError`` with the place, dotted."""
    origin = get_origin(hint)
    if origin is typing.Annotated:
        return decode(value, get_args(hint)[0], where)
    if _is_dataclass_type(origin):
        return _decode_dataclass(value, origin, where)
    if _is_dataclass_type(hint):
        return _decode_dataclass(value, hint, where)
    if origin in (Union, types.UnionType):
        return _decode_union(value, get_args(hint), where)
    if origin is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{where} must be one of {', '.join(map(repr, get_args(hint)))}, got {value!r}.")
        return value
    if hint is tuple or origin in (tuple, list, Sequence):
        return _decode_sequence(value, hint, where)
    if hint is dict or origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be an object, got {_describe(value)}.")
        item_hint = get_args(hint)[1] if get_args(hint) else Any
        return {key: decode(item, item_hint, f"{where}.{key}") for key, item in value.items()}
    if hint in (bool, int, float, str, type(None), Path):
        return _decode_plain(value, hint, where)
    return _decode_untyped(value, where)


def _decode_dataclass(value: Any, config_class: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{where} must be an object with the fields of {config_class.__name__}, got {_describe(value)}."
        )
    given = dict(value)
    if "kind" in given and "kind" not in {field.name for field in dataclasses.fields(config_class)}:
        chosen = resolve_kind(given.pop("kind"), where)
        if not issubclass(chosen, config_class):
            raise ValueError(f"{where}.kind must be {kind_of(config_class)!r}, got {kind_of(chosen)!r}.")
        config_class = chosen
    fields = {field.name: field for field in dataclasses.fields(config_class) if field.init}
    for name in given:
        if name not in fields:
            raise ValueError(f"{where}.{name} is no field of {config_class.__name__}. {nearest(name, fields)}")
    missing = [
        name
        for name, field in fields.items()
        if name not in given and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where} lacks the required fields {', '.join(missing)} of {config_class.__name__}.")
    hints = typing.get_type_hints(config_class)
    arguments = {name: decode(item, hints[name], f"{where}.{name}") for name, item in given.items()}
    try:
        return config_class(**arguments)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _decode_union(value: Any, members: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in members:
        return None
    classes = [get_origin(member) or member for member in members if _is_dataclass_type(get_origin(member) or member)]
    # A protocol among the members (Buildable) leaves the choice open: any config class that has its methods.
    protocols = [member for member in members if getattr(member, "_is_protocol", False)]
    if isinstance(value, Mapping) and classes:
        if "kind" not in value and len(classes) > 1:
            options = ", ".join(kind_of(option) for option in classes)
            raise ValueError(f'{where} needs a "kind", one of {options}.')
        if "kind" not in value:
            return _decode_dataclass(value, classes[0], where)
        chosen = resolve_kind(value["kind"], where)
        if not issubclass(chosen, (*classes, *protocols)):
            options = ", ".join(kind_of(option) for option in classes)
            methods = " or any config class with build()" if protocols else ""
            raise ValueError(f"{where}.kind must be one of {options}{methods}, got {value['kind']!r}.")
        return _decode_dataclass(value, chosen, where)
    reasons = []
    for member in sorted(members, key=lambda member: member is not type(value)):  # an int stays an int in int | float
        try:
            return decode(value, member, where)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError(reasons[0] if len(set(reasons)) == 1 else f"{where} fits no allowed type: {' '.join(reasons)}")


def _decode_sequence(value: Any, hint: Any, where: str) -> Any:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where} must be a list, got {_describe(value)}.")
    arguments = get_args(hint)
    if get_origin(hint) is tuple and arguments and Ellipsis not in arguments and len(arguments) != len(value):
        raise ValueError(f"{where} must have {len(arguments)} entries, got {len(value)}.")
    hints = _item_hints(hint, len(value))
    items = (decode(item, hints[i], f"{where}[{i}]") for i, item in enumerate(value))
    return list(items) if get_origin(hint) is list else tuple(items)


def _decode_plain(value: Any, hint: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    is_right = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    if not is_right:
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path as text"}
        raise ValueError(f"{where} must be {names.get(hint, 'null')}, got {_describe(value)}.")
    return value


def _decode_untyped(value: Any, where: str) -> Any:
    """Where the hint says nothing (Any, a type variable, a protocol): objects with ``kind`` become configs."""
    if isinstance(value, Mapping):
        if "kind" in value:
            return _decode_dataclass(value, resolve_kind(value["kind"], where), where)
        return {key: _decode_untyped(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_decode_untyped(item, f"{where}[{i}]") for i, item in enumerate(value))
    return value


def _item_hints(hint: Any, length: int) -> Sequence[Any]:
    arguments = get_args(hint)
    if get_origin(hint) is tuple and arguments and Ellipsis not in arguments and len(arguments) == length:
        return arguments
    if get_origin(hint) in (tuple, list, Sequence) and arguments:
        return [arguments[0]] * length
    return [Any] * length


def _is_dataclass_type(value: Any) -> bool:
    return isinstance(value, type) and dataclasses.is_dataclass(value) and not isinstance(value, TypeVar)


def _describe(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
