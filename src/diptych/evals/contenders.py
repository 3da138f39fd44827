"""Models as contenders of the harness: a model of diptych, and a pair of which one writes and one draws."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.evals.protocol import Contender, Kind, Output, Request

if TYPE_CHECKING:
    from diptych.unified import UnifiedModel

DRAW_SETTINGS = ("num_steps", "guidance_scale", "size", "think")
WRITE_SETTINGS = ("max_new_tokens", "temperature", "top_p", "think")


class UnifiedContender:
    """A model of diptych.

    Args:
        fingerprint: tells its weights apart from others'.
    """

    def __init__(self, model: "UnifiedModel", name: str, fingerprint: str) -> None:
        self.model = model
        self.name = name
        self.fingerprint = fingerprint
        self.image_size = (model.images.size[0], model.images.size[1])
        self.capabilities = (*model.capabilities, "log_likelihood", "hidden_states")

    def identity(self) -> dict[str, Any]:
        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        return {"fingerprint": self.fingerprint, "dtype": dtype}

    def settings(self, kind: Kind, given: Mapping[str, Any]) -> dict[str, Any]:
        own = self.model.draw_settings
        if kind == "log_likelihood":
            defaults: dict[str, Any] = {"think": own.thinks_to_answer}
        elif kind == "image":
            defaults = {
                **asdict(own),  # whatever a model draws by belongs to the key of a sample
                "guidance_scale": float(own.guidance_scale),
                "guidance_interval": list(own.guidance_interval),
                "size": list(self.model.images.size),
            }
        else:
            defaults = {"max_new_tokens": 256, "temperature": 0.0, "top_p": 1.0, "think": own.thinks_to_answer}
        known = {"image": DRAW_SETTINGS, "text": WRITE_SETTINGS, "log_likelihood": ("think",)}[kind]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ValueError(f"{self.name}: there is no setting {unknown[0]!r} of {kind}. Known: {', '.join(known)}.")
        settings = {**defaults, **{name: value for name, value in given.items() if value is not None}}
        if kind == "image":
            settings["size"] = [int(side) for side in settings["size"]]
        return settings

    def draw(self, requests: Sequence[Request]) -> list[Output]:
        settings = {name: requests[0].settings[name] for name in DRAW_SETTINGS}
        settings["size"] = tuple(settings["size"])
        prompts = [list(request.parts) for request in requests]
        seeds = [request.seed for request in requests]
        images = self.model.generate_image(prompts, seed=seeds, batch_size=len(prompts), **settings)
        return [np.asarray(image) for image in images]

    def write(self, requests: Sequence[Request]) -> list[Output]:
        prompts = [list(request.parts) for request in requests]
        settings = {name: requests[0].settings[name] for name in WRITE_SETTINGS}
        texts = self.model.generate_text(prompts, seed=[request.seed for request in requests], **settings)
        assert isinstance(texts, list)
        return list(texts)

    def log_likelihood(self, requests: Sequence[Request]) -> list[Output]:
        outputs: list[Output] = []
        for request in requests:
            think = request.settings["think"]
            values = self.model.log_likelihood(list(request.parts), list(request.choices), think=think)
            assert isinstance(values, list)
            outputs.append(tuple(values))
        return outputs

    def hidden_states(self, request: Request, layers: Sequence[int]) -> dict[int, Any]:
        return self.model.hidden_states(list(request.parts), layers)


class Pair:
    """Two models as one contender: ``understander`` writes, ``generator`` draws."""

    def __init__(self, understander: Contender, generator: Contender) -> None:
        self.understander, self.generator = understander, generator
        self.name = f"{understander.name}+{generator.name}"
        self.image_size = understander.image_size
        writes = [name for name in understander.capabilities if name not in ("text_to_image", "image_edit")]
        draws = [name for name in generator.capabilities if name in ("text_to_image", "image_edit")]
        self.capabilities = (*writes, *draws)

    def identity(self) -> dict[str, Any]:
        return {"understander": self.understander.identity(), "generator": self.generator.identity()}

    def settings(self, kind: Kind, given: Mapping[str, Any]) -> dict[str, Any]:
        return (self.generator if kind == "image" else self.understander).settings(kind, given)

    def draw(self, requests: Sequence[Request]) -> Sequence[Output]:
        return self.generator.draw(requests)

    def write(self, requests: Sequence[Request]) -> Sequence[Output]:
        return self.understander.write(requests)

    def log_likelihood(self, requests: Sequence[Request]) -> Sequence[Output]:
        outputs: Sequence[Output] = self.understander.log_likelihood(requests)  # type: ignore[attr-defined]
        return outputs

    def hidden_states(self, request: Request, layers: Sequence[int]) -> dict[int, Any]:
        states: dict[int, Any] = self.understander.hidden_states(request, layers)  # type: ignore[attr-defined]
        return states
