"""Imports point down: every import of every file, read with ast, against the levels that docs/architecture draws."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "diptych"

LEVELS = [
    {"cli", "serve"},
    {"recipes"},
    {"interop"},
    {"methods"},
    {"train", "evals", "frechet"},
    {"objectives"},
    {"unified"},
    {"models"},
    {"data"},
    {"flow", "discrete", "scenes"},
]
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

EXCEPTIONS: dict[tuple[str, str], str] = {}
"""(importing module, imported room): why. The module is named as ``room.file``."""

STANDALONE = {"scenes": {"torch"}, "frechet": {"scipy"}}
"""Rooms that are used without the rest, and what they must not import."""


def module_name(path: Path) -> str:
    """``train.loop`` for ``src/diptych/train/loop.py``; an ``__init__`` is its package."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(tree: ast.AST) -> list[str]:
    """Every absolute module a file imports, inside functions too."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction: write them out"
            assert node.module is not None
            # "from diptych import flow" imports the room, not the package
            names += [f"diptych.{alias.name}" for alias in node.names] if node.module == "diptych" else [node.module]
    return names


def violations(source: str, module: str) -> list[str]:
    """The imports of one file that do not point down."""
    found = []
    room = module.split(".")[0]
    for name in imported_modules(ast.parse(source)):
        top, _, rest = name.partition(".")
        if top in STANDALONE.get(room, set()):
            found.append(f"{module} imports {top}, which the room does without")
        target = rest.split(".")[0]
        if top != "diptych" or target == room or not target or target not in LEVEL_OF or room not in LEVEL_OF:
            continue
        if LEVEL_OF[target] <= LEVEL_OF[room] and (module, target) not in EXCEPTIONS:
            found.append(f"{module} imports diptych.{target}")
    return found


def test_every_import_points_down():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 20
    rooms = {module_name(path).split(".")[0] for path in files if path.parent != PACKAGE}
    assert rooms <= set(LEVEL_OF), f"rooms without a level: {sorted(rooms - set(LEVEL_OF))}"
    assert [line for path in files for line in violations(path.read_text(encoding="utf-8"), module_name(path))] == []


def test_methods_and_recipes_do_not_import_their_neighbours():
    """Files of one paper stand alone: a method never imports another method."""
    checked = 0
    for room in ("methods",):
        for path in sorted((PACKAGE / room).glob("*.py")):
            module = f"diptych.{module_name(path)}"
            imported = imported_modules(ast.parse(path.read_text(encoding="utf-8")))
            others = [name for name in imported if name.startswith(f"diptych.{room}.") and name != module]
            assert others == [], f"{module} imports {others}"
            checked += 1
    assert checked > 0


def test_every_exception_is_still_needed():
    for module, target in EXCEPTIONS:
        path = PACKAGE / (module.replace(".", "/") + ".py")
        imported = imported_modules(ast.parse(path.read_text(encoding="utf-8")))
        assert any(name.startswith(f"diptych.{target}") for name in imported), f"{module} no longer imports {target}"


@pytest.mark.parametrize(
    ("source", "module", "expected"),
    [
        ("from diptych.methods.blip3o import Blip3oConfig", "train.loop", ["train.loop imports diptych.methods"]),
        ("def f():\n    import diptych.cli.main", "train.loop", ["train.loop imports diptych.cli"]),
        ("from diptych import evals", "train.loop", ["train.loop imports diptych.evals"]),
        ("from diptych.scenes.scene import Scene", "flow.path", ["flow.path imports diptych.scenes"]),
        ("import torch", "scenes.draw", ["scenes.draw imports torch, which the room does without"]),
        ("from diptych.data.example import Example", "train.loop", []),
        ("from diptych.train.recipe import Recipe", "train.loop", []),
        ("import torch", "train.loop", []),
    ],
)
def test_the_check_itself_sees_an_upward_import(source, module, expected):
    assert violations(source, module) == expected
