"""The entry point: finds the verb, runs it, and turns what a user can cause into one clear paragraph.

Light on purpose: a verb's file is imported when the verb is used, and imports torch only when it runs.
"""

import errno
import os
import sys
import textwrap
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

from diptych import __version__
from diptych.cli.parser import Parser
from diptych.train.nearest import nearest


class VerbModule(Protocol):
    """What the file of a verb offers.

    ``TAKES_FIELDS = True`` hands over all unknown arguments as ``fields`` and leaves ``--help`` to the verb, which gets
    its ``parser``.
    """

    DESCRIPTION: str
    EXAMPLES: str

    def add_arguments(self, parser: Parser) -> None: ...

    def run(self, arguments: Namespace) -> int: ...


@dataclass(frozen=True)
class Verb:
    """Where a verb lives and what the overview says about it."""

    usage: str
    summary: str
    module: str


VERBS = {
    "demo": Verb("demo", "see a model draw, edit and answer, then train one and score both", "diptych.cli.demo"),
    "train": Verb("train RECIPE [--field value …]", "train a recipe into a run folder", "diptych.cli.train"),
    "resume": Verb("resume RUN", "go on with an interrupted run", "diptych.cli.resume"),
    "generate": Verb("generate PROMPT …", "draw pictures", "diptych.cli.generate"),
    "ask": Verb("ask IMAGE QUESTION", "ask a question about a picture", "diptych.cli.ask"),
    "edit": Verb("edit IMAGE INSTRUCTION", "change a picture as told", "diptych.cli.edit"),
    "evaluate": Verb("evaluate MODEL --on TASKS", "measure a model, with intervals", "diptych.cli.evaluate"),
    "compare": Verb(
        "compare RECIPE … | RUN RUN", "recipes under one budget, or two evaluations", "diptych.cli.compare"
    ),
    "probe": Verb("probe MODEL", "entropy of hidden states by layer, both directions", "diptych.cli.probe"),
    "fd": Verb("fd GENERATED REFERENCE", "Fréchet distances between sets of images", "diptych.cli.fd"),
    "data": Verb("data check|pack PATH", "inspect training data, or pack it into tars", "diptych.cli.data"),
    "cache": Verb(
        "cache RECIPE --data SOURCE", "encode what a training is to draw, once, into files", "diptych.cli.cache"
    ),
    "convert": Verb("convert SOURCE TARGET", "a released model as a model folder", "diptych.cli.convert"),
    "merge": Verb(
        "merge BASE ADAPTERS TARGET", "a model and its LoRA adapters as one model folder", "diptych.cli.merge"
    ),
    "info": Verb("info MODEL", "parts, parameters, licence, training, scores", "diptych.cli.info"),
}

EXTRAS = {
    "hf": {"transformers", "diffusers", "datasets"},
    "peft": {"peft"},
    "quant": {"torchao"},
    "data": {"webdataset", "fsspec", "pyarrow"},
    "trackers": {"tensorboard", "wandb"},
}
"""Optional packages by the extra of diptych that installs them."""

STOPPED_WITH_REASON = {"NonFiniteLoss", "TooManyBadRecords"}
"""Errors of a run that say all there is to say; by name, because their modules import torch."""

USER_ERROR, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 2 for a user's mistake, 130 after Ctrl-C.

    A bug in diptych itself is not caught: its traceback belongs into a bug report.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return _dispatch(import_packages(words))
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = explain(error)
        if debug or message is None:
            raise
        print(_paragraph(f"diptych: {message}"), file=sys.stderr)
        return USER_ERROR


def overview() -> str:
    """What ``diptych --help`` prints."""
    width = max(len(verb.usage) for verb in VERBS.values())
    lines = "\n".join(f"  {verb.usage:<{width}}  {verb.summary}" for verb in VERBS.values())
    return f"""diptych {__version__}: unified multimodal models, which both understand images and make them.

usage: diptych VERB …

{lines}

  diptych VERB --help   shows a verb's options and examples
  diptych --version     prints the version
  --debug               with any verb: a full traceback instead of a short message
  --import MODULE       with any verb: a module of your own whose parts a model is made of

Begin with:  diptych generate "a red circle above a blue square"
"""


def explain(error: Exception) -> str | None:
    """What a user reads instead of a traceback; ``None`` for an error that only a bug can cause."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        for extra, packages in EXTRAS.items():
            if package in packages:
                return (
                    f"this needs the package {package}, which is not installed. "
                    f"Install it with: pip install 'diptych[{extra}]'"
                )
        return None
    if isinstance(error, OSError):
        return _explain_os_error(error)
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, KeyError):
        # str() of a KeyError shows its message in quotes; a bare key without words is a bug.
        message = str(error.args[0]) if error.args else ""
        return message if " " in message else None
    if type(error).__name__ in STOPPED_WITH_REASON:
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":
        return f"the device has too little memory: {error} Use a smaller batch, a smaller model or dtype bfloat16."
    return None


def _explain_os_error(error: OSError) -> str:
    if error.errno is None or error.strerror is None:
        return str(error)
    where = f"{error.filename}: " if error.filename else ""
    if error.strerror != os.strerror(error.errno):  # words of our own, which say more
        return f"{where}{error.strerror.removesuffix('.')}."
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{where}no space left on the disk. Free some, or write elsewhere."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where}{error.strerror.lower()}. Choose a place you may write to."
    return f"{where}{error.strerror.lower()}."


def import_packages(words: list[str]) -> list[str]:
    """Imports the modules that ``--import`` names; returns the other words.

    A model folder may come from a stranger, so it cannot have modules imported by itself.
    """
    rest: list[str] = []
    given = iter(words)
    for word in given:
        flag, separator, name = word.partition("=")
        if flag != "--import":
            rest.append(word)
            continue
        name = name if separator else next(given, "")
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"--import needs a module, such as package.parts, got {name!r}.")
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
                raise
            raise ValueError(
                f"--import: there is no module {name!r}. Install the package that has it, or set PYTHONPATH."
            ) from error
    return rest


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview(), end="")
        return 0
    if words[0] in ("--version", "-V"):
        print(f"diptych {__version__}")
        return 0
    name = words[0]
    if name not in VERBS:
        raise ValueError(f"unknown verb {name!r}. {nearest(name, VERBS)} `diptych --help` lists all.")
    verb = cast(VerbModule, import_module(VERBS[name].module))
    takes_fields = getattr(verb, "TAKES_FIELDS", False)
    parser = Parser(f"diptych {name}", verb.DESCRIPTION, f"examples:\n{verb.EXAMPLES}", add_help=not takes_fields)
    verb.add_arguments(parser)
    try:
        if takes_fields:
            arguments, fields = parser.parse_known_args(words[1:])
            arguments.fields, arguments.parser = fields, parser
        else:
            # Intermixed: prompts may stand before and after options.
            arguments = parser.parse_intermixed_args(words[1:])
    except SystemExit as stop:
        # --help has printed and ends here.
        return int(stop.code or 0)
    arguments.words = ["diptych", *words]
    return verb.run(arguments)


def _paragraph(text: str) -> str:
    """Wrapped to the terminal; lines that the message broke itself stay broken."""
    width = min(max(os.get_terminal_size(2).columns if sys.stderr.isatty() else 100, 40), 100)
    lines = [textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in text.splitlines()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
