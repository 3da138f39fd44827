"""A model class of lmms-eval as a contender: ``lmms:NAME`` or ``lmms:NAME,argument=value,...``. It can only write."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from diptych.data.example import ImageIn, Text, load_pixels
from diptych.evals.lmms import needs_lmms
from diptych.evals.protocol import Failure, Kind, Output, Request

TASK, SPLIT = "diptych", "test"
SETTINGS = ("max_new_tokens", "temperature", "top_p")


class LmmsContender:
    """
    Args:
        model: an instance of lmms-eval's ``lmms``.
        name: with its arguments, by which samples are keyed.
    """

    capabilities = ("text", "image_to_text")
    image_size = (64, 64)

    def __init__(self, model: Any, name: str) -> None:
        self.model, self.name = model, f"lmms:{name}"

    @classmethod
    def from_spelling(cls, text: str) -> "LmmsContender":
        """
        Args:
            text: ``NAME`` or ``NAME,argument=value,...``.

        Raises:
            ValueError: lmms-eval is not installed, or has no such model.
        """
        try:
            from lmms_eval.models import get_model
        except ImportError:
            raise needs_lmms(f"lmms:{text}") from None
        name, _, arguments = text.partition(",")
        try:
            model_class = get_model(name, force_simple=True)
        except ValueError as error:
            raise ValueError(f"lmms:{name}: {str(error)[:200]}") from None
        return cls(model_class.create_from_arg_string(arguments, {}), text)

    def identity(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {"lmms": self.name.removeprefix("lmms:"), "lmms_eval": version("lmms-eval")}

    def settings(self, kind: Kind, given: Mapping[str, Any]) -> dict[str, Any]:
        unknown = sorted(set(given) - set(SETTINGS))
        if unknown or kind != "text":
            raise ValueError(
                f"{self.name}: there is no setting {(unknown or [kind])[0]!r}. Known: {', '.join(SETTINGS)}."
            )
        return {"max_new_tokens": 256, "temperature": 0.0, "top_p": 1.0, **given}

    def write(self, requests: Sequence[Request]) -> list[Output]:
        from lmms_eval.api.instance import Instance

        documents = [_document(request) for request in requests]
        self.model.task_dict[TASK] = {SPLIT: documents}
        instances = []
        for number, (request, document) in enumerate(zip(requests, documents, strict=True)):
            given = {**request.settings, "do_sample": request.settings["temperature"] > 0, "until": []}
            if getattr(self.model, "is_simple", True):
                arguments: tuple[Any, ...] = (document["text"], given, _visuals, number, TASK, SPLIT)
            else:
                arguments = (_messages, given, number, TASK, SPLIT)
            about = {"task": TASK, "doc_id": number, "repeats": 1}
            instances.append(Instance("generate_until", arguments, number, metadata=about))
        return [_text(answer) for answer in self.model.generate_until(instances)]

    def draw(self, requests: Sequence[Request]) -> list[Output]:
        return [Failure("a model of lmms-eval is only asked for words") for _ in requests]


def _document(request: Request) -> dict[str, Any]:
    pictures = [Image.fromarray(load_pixels(part.image)) for part in request.parts if isinstance(part, ImageIn)]
    return {"pictures": pictures, "text": "\n".join(part.text for part in request.parts if isinstance(part, Text))}


def _visuals(document: Mapping[str, Any]) -> list[Image.Image]:
    return list(document["pictures"])


def _messages(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [{"type": "image", "url": picture} for picture in document["pictures"]]
    return [{"role": "user", "content": [*content, {"type": "text", "text": document["text"]}]}]


def _text(answer: Any) -> Output:
    text = getattr(answer, "text", answer)
    return text if isinstance(text, str) else Failure(f"the model gave no text: {type(answer).__name__}")
