"""The documentation keeps its word: its Python runs, its excerpts are of real files, its commands and links exist."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

from diptych.cli.main import VERBS, import_packages
from diptych.cli.parser import Parser
from diptych.data import sources
from diptych.methods.blip3o import Blip3oConfig
from diptych.methods.clip import ClipConfig
from diptych.methods.training import scorers_of
from diptych.train import recipe as recipe_types
from diptych.train.override import override
from diptych.train.presets import load_preset
from diptych.train.serialization import to_json
from diptych.unified import ImagePolicy

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))

DOCUMENTED = [
    recipe_types.Recipe,
    recipe_types.Stage,
    recipe_types.OptimizerConfig,
    recipe_types.SamplingConfig,
    recipe_types.EvaluationConfig,
    recipe_types.CheckpointConfig,
    recipe_types.LoggingConfig,
    Blip3oConfig,
    ImagePolicy,
    *(getattr(sources, name) for name in sources.__all__),
]

_BLOCK = re.compile(r"^```(?P<info>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def blocks(page: Path, info: str) -> list[str]:
    """The fenced blocks of a page whose fence says ``info``."""
    return [match["code"] for match in _BLOCK.finditer(page.read_text(encoding="utf-8")) if match["info"] == info]


def anchors(page: Path) -> set[str]:
    """What links can name on a page, as GitHub makes it from headings."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def command_lines(block: str) -> Iterator[str]:
    """The commands of a shell block; one goes on over lines that end in a backslash or inside of quotes."""
    pending = ""
    for line in block.replace("\\\n", " ").splitlines():
        pending += line + "\n"
        try:
            shlex.split(pending, comments=True)
        except ValueError:
            continue
        yield pending
        pending = ""
    assert not pending.strip(), f"a quote is never closed: {pending}"


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every ``diptych`` command in the shell blocks of a page, from the verb on."""
    for block in blocks(page, "sh"):
        for line in command_lines(block):
            words = shlex.split(line, comments=True)
            if "diptych" in words:
                yield words[words.index("diptych") + 1 :]


RUNNABLE = [page for page in PAGES if blocks(page, "python runnable")]


def test_pages_are_found():
    assert {page.stem for page in PAGES} >= {
        "index", "architecture", "scenes", "recipes", "formats", "adding-a-method",
    }  # fmt: skip
    assert len(RUNNABLE) >= 5


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.stem)
def test_marked_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for number, code in enumerate(blocks(page, "python runnable"), 1):
        exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_python_stands_there_unchecked(page):
    """Python is run, or is an excerpt of a file that is named in the fence and tested elsewhere."""
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        language, _, rest = match["info"].partition(" ")
        if language != "python" or rest == "runnable":
            continue
        assert rest.startswith("from "), f"{page.name}: mark the block 'python runnable' or 'python from FILE'"
        source = (ROOT / rest.removeprefix("from ")).read_text(encoding="utf-8")
        assert match["code"] in source, f"{page.name}: an excerpt is no longer in {rest.removeprefix('from ')}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    targets = [target for target in _LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target]
    for target in targets:
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}, which has no such heading"


def test_commands_take_the_options_shown(tmp_path, monkeypatch):
    """Every command is parsed as the command line would; recipes are built with the flags shown."""
    monkeypatch.chdir(tmp_path)
    checked = 0
    for page in (*PAGES, ROOT / "README.md"):
        for words in map(import_packages, commands(page)):
            verb = import_module(VERBS[words[0]].module)
            takes_fields = getattr(verb, "TAKES_FIELDS", False)
            parser = Parser(words[0], "", add_help=not takes_fields)
            verb.add_arguments(parser)
            checked += 1
            if not takes_fields:
                parser.parse_intermixed_args(words[1:])
                continue
            arguments, flags = parser.parse_known_args(words[1:])
            if words[0] == "train" and not arguments.wants_help:
                if arguments.recipe.endswith(".json"):  # of an earlier run of the reader
                    Path(arguments.recipe).parent.mkdir(parents=True)
                    Path(arguments.recipe).write_text(to_json(load_preset("blip3o:tiny")))
                recipe = override(load_preset(arguments.recipe), flags)
                known = {*scorers_of(recipe.model), *getattr(recipe.model, "companion_scorers", ())}
                assert set(recipe.evaluation.scorers) <= known, f"{page.name}: {words}"
    assert checked > 25


def test_every_field_of_contrastive_training_is_documented():
    text = (DOCS / "encoders.md").read_text(encoding="utf-8")
    assert [field.name for field in fields(ClipConfig) if f"`{field.name}`" not in text] == []


@pytest.mark.parametrize("config", DOCUMENTED, ids=lambda config: config.__name__)
def test_every_field_is_documented(config):
    text = (DOCS / "recipes.md").read_text(encoding="utf-8")
    names = [field.name for field in fields(config)]
    assert names
    assert [name for name in names if not re.search(rf"[`.]{name}`", text)] == []


BENCHMARKS = (
    "do-undo", "dpg", "entropy", "gedit", "geneval", "geneval2", "gsi", "imgedit", "mjhq", "preferences", "rise",
    "t2i-compbench", "wise", "xtc",
)  # fmt: skip


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_page_of_a_benchmark_says_what_how_what_changes_it_what_is_ours_and_how_to_cite(name):
    text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert text.split("\n## ")[0].count("\n") >= 2, "what it measures stands before the first heading"
    for wanted in ("Protocol", "What changes the number", "What ours adds", "Citing"):
        assert wanted in headings, f"{name}.md lacks '## {wanted}': {headings}"
    assert f"{name}.md" in (DOCS / "evaluation.md").read_text(encoding="utf-8")
