"""Any image-text-to-text model of ``transformers`` (LLaVA, Qwen2.5-VL, Qwen3-VL …) as a contender and a judge.

Prompts go through the model's own chat template. Answers are greedy unless a temperature is given. Probabilities of
first tokens are those of the whole vocabulary, so that Soft-TIFA can be computed as published.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from PIL import Image

from diptych.data.example import ImageIn, ImageOut, Text, load_pixels
from diptych.evals.protocol import Failure, Kind, Output, Request

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

WRITE_SETTINGS = ("max_new_tokens", "temperature", "top_p")
PREFIX = "transformers:"
"""Before the name or folder of such a model on the command line."""


class ImageTextModel:
    """A loaded model with its processor.

    Args:
        revision: tells its weights apart from others'.
    """

    capabilities = ("text", "image_to_text")
    image_size = (512, 512)

    def __init__(self, model: "PreTrainedModel", processor: "ProcessorMixin", name: str, revision: str) -> None:
        self.model, self.processor, self.name, self.revision = model.eval(), processor, name, revision

    def identity(self) -> dict[str, Any]:
        return {"fingerprint": self.revision, "dtype": str(self.model.dtype).removeprefix("torch.")}

    def settings(self, kind: Kind, given: Mapping[str, Any]) -> dict[str, Any]:
        if kind != "text":
            raise ValueError(f"{self.name}: it writes, and cannot be asked for {kind}.")
        unknown = sorted(set(given) - set(WRITE_SETTINGS))
        if unknown:
            raise ValueError(
                f"{self.name}: there is no setting {unknown[0]!r} of text. Known: {', '.join(WRITE_SETTINGS)}."
            )
        return {"max_new_tokens": 256, "temperature": 0.0, "top_p": 1.0, **given}

    def draw(self, requests: Sequence[Request]) -> list[Output]:
        return [Failure(f"{self.name} cannot draw") for _ in requests]

    @torch.inference_mode()
    def write(self, requests: Sequence[Request]) -> list[Output]:
        outputs: list[Output] = []
        for request in requests:
            inputs, settings = self._inputs(request), request.settings
            sampling: dict[str, Any] = {"do_sample": False}
            if settings["temperature"] > 0:
                torch.manual_seed(request.seed)
                sampling = {"do_sample": True, "temperature": settings["temperature"], "top_p": settings["top_p"]}
            generator: Any = self.model
            tokens = generator.generate(**inputs, max_new_tokens=settings["max_new_tokens"], **sampling)
            answer = tokens[0, inputs["input_ids"].shape[1] :]
            outputs.append(str(self._tokenizer.decode(answer, skip_special_tokens=True)).strip())
        return outputs

    @torch.inference_mode()
    def first_tokens(self, requests: Sequence[Request]) -> list["FirstTokens"]:
        """Probabilities of all first tokens of an answer."""
        found = []
        for request in requests:
            logits = self.model(**self._inputs(request)).logits[0, -1].float()
            found.append(FirstTokens(logits.softmax(-1), self._tokenizer))
        return found

    @property
    def _tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    def _inputs(self, request: Request) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        for part in request.parts:
            if isinstance(part, Text):
                content.append({"type": "text", "text": part.text})
            else:
                assert isinstance(part, ImageIn | ImageOut)
                assert part.image is not None
                content.append({"type": "image", "image": Image.fromarray(load_pixels(part.image))})
        processor: Any = self.processor
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        return dict(inputs.to(self.model.device, self.model.dtype))


class FirstTokens:
    """Probabilities of a whole vocabulary."""

    def __init__(self, probabilities: Float[torch.Tensor, " vocab"], tokenizer: Any) -> None:
        self.probabilities, self.tokenizer = probabilities, tokenizer

    def probability_of(self, forms: Sequence[str]) -> float:
        """That the first token is the first one of any of several spellings; each token counts once."""
        encoded = [self.tokenizer.encode(form, add_special_tokens=False) for form in forms]
        return sum(float(self.probabilities[token]) for token in {tokens[0] for tokens in encoded if tokens})


def load_image_text_model(name: str, device: str = "auto", dtype: str = "auto") -> ImageTextModel:
    """A model folder, or a name in the cache of ``transformers``.

    Args:
        device: ``auto`` takes a GPU where there is one.
        dtype: ``auto`` is that of the files.

    Raises:
        FileNotFoundError: there is no such model, or ``transformers`` is not installed.
    """
    try:
        from transformers import AutoModelForImageTextToText, AutoProcessor
    except ImportError:
        raise FileNotFoundError(f"{PREFIX}{name} needs transformers: pip install 'diptych[hf]'.") from None
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        loader: Any = AutoModelForImageTextToText
        model = loader.from_pretrained(name, dtype=dtype).to(chosen)
        processor: Any = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"{PREFIX}{name} cannot be loaded as an image-text-to-text model: {first}") from None
    return ImageTextModel(model, processor, Path(name).name or name, _revision(model, name))


def _revision(model: Any, name: str) -> str:
    """The commit of a downloaded model, or a digest of the weights."""
    commit = getattr(model.config, "_commit_hash", None)
    if commit:
        return str(commit)
    from diptych.frechet.features import weights_digest

    return weights_digest(model)
