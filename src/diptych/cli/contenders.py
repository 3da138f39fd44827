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
PICTURES = "pictures:"
"""Before a folder of pictures that were made elsewhere, in the layout of an official scorer."""


@dataclass(frozen=True)
class ContenderSpec:
    """Which contender; picklable, and opened by calling it in the process that needs it, on a GPU of its own.

    Attributes:
        model: a model of diptych, ``URL#NAME`` of a server, ``pictures:FOLDER``, ``transformers:NAME``, or a
            reference.
        generator: another one that draws, where ``model`` only writes.
        size: (height, width) of pictures asked of a server.
    """

    model: str
    generator: str | None
    device: str
    dtype: str
    size: tuple[int, int] | None = None

    def __call__(self, process: int = 0) -> "OpenContender":
        from diptych.evals.contenders import Pair

        main = self._open(self.model, process)
        if self.generator is None:
            return main
        other = self._open(self.generator, process)
        return lambda task: Pair(main(task), other(task))

    def model_alone(self) -> "Contender":
        """The model itself, where it is no reference and belongs to no task."""
        return _own(self.model, self.device, self.dtype)

    def _open(self, name: str, process: int) -> "OpenContender":
        if name in REFERENCES:
            from diptych.evals.references import Reference

            return lambda task: Reference(name, task, self.size or (64, 64))
        if name.startswith(PICTURES):
            from diptych.evals.official_layout import PictureFolder

            return lambda task: PictureFolder(name.removeprefix(PICTURES), task)
        if name.startswith("lmms:"):
            from diptych.evals.lmms.contender import LmmsContender

            foreign = LmmsContender.from_spelling(name.removeprefix("lmms:"))
            return lambda task: foreign
        if name.startswith(("http://", "https://")):
            from diptych.evals.openai_url import OpenAIContender

            server = OpenAIContender.from_address(name, self.size or (512, 512))
            return lambda task: server
        contender = _own(name, _device(self.device, process), self.dtype)
        return lambda task: contender


def _device(device: str, process: int) -> str:
    """Where there are several GPUs and none was chosen, the processes take them in turn."""
    import torch

    count = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    return f"cuda:{process % count}" if count > 1 else device


def _own(name: str, device: str, dtype: str) -> "Contender":
    """A model of diptych, or ``transformers:NAME``."""
    from diptych.interop.image_text_model import PREFIX, load_image_text_model

    if name.startswith(PREFIX):
        return load_image_text_model(name.removeprefix(PREFIX), device, dtype)
    return _unified(name, device, dtype)


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
