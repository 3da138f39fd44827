"""What ``diptych evaluate`` measures: a model, a pair, a server or a reference, opened in the process that needs it."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli.models import folder_fingerprint, load_model, model_record

if TYPE_CHECKING:
    from diptych.evals.harness import OpenContender
    from diptych.evals.protocol import Contender

REFERENCES = ("oracle", "chance", "constant", "copy-input")


@dataclass(frozen=True)
class ContenderSpec:
    """Which contender; picklable, and called in a process it opens it there.

    Attributes:
        model: a model of diptych, ``URL#NAME`` of a server, or a reference.
        generator: another one that draws, where ``model`` only writes.
        size: (height, width) of pictures asked of a server.
    """

    model: str
    generator: str | None
    device: str
    dtype: str
    size: tuple[int, int] | None = None

    def __call__(self) -> "OpenContender":
        from diptych.evals.contenders import Pair

        main = self._open(self.model)
        if self.generator is None:
            return main
        other = self._open(self.generator)
        return lambda task: Pair(main(task), other(task))

    def _open(self, name: str) -> "OpenContender":
        if name in REFERENCES:
            from diptych.evals.references import Reference

            return lambda task: Reference(name, task, self.size or (64, 64))
        if name.startswith(("http://", "https://")):
            from diptych.evals.openai_url import OpenAIContender

            server = OpenAIContender.from_address(name, self.size or (512, 512))
            return lambda task: server
        contender = _unified(name, self.device, self.dtype)
        return lambda task: contender


def _unified(name: str, device: str, dtype: str) -> "Contender":
    from diptych.evals.contenders import UnifiedContender

    model = load_model(name, Namespace(device=device, dtype=dtype))
    return UnifiedContender(model, Path(name).name or name, folder_fingerprint(name))


def contender_record(contender: "Contender", name: str) -> dict[str, Any]:
    """What ``scores.json`` says about who was measured."""
    from diptych.evals.contenders import UnifiedContender

    if isinstance(contender, UnifiedContender):
        return model_record(contender.model, name)
    return {"model": name, "versions": _versions()}


def _versions() -> dict[str, str]:
    import torch

    from diptych import __version__

    return {"diptych": __version__, "torch": torch.__version__}
