"""A model of diptych as a model class of lmms-eval: ``--model diptych --model_args pretrained=FOLDER``.

Imported by lmms-eval alone, through the entry point. It writes; with ``mode=draw`` it draws, and answers as lmms-eval's
tasks of generation expect, ``{"text": "", "images": [path]}``.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lmms_eval.api.model import lmms
from PIL import Image

from diptych.data.example import ImageIn, Part, Text
from diptych.evals.contenders import UnifiedContender
from diptych.evals.protocol import Contender, Failure, Output, Request


class DiptychModel(lmms):
    """
    Args:
        pretrained: bundled model, model folder or checkpoint.
        mode: ``write`` or ``draw``.
        seed: of drawings; the k-th repeat of a document i has ``seed + 1000 * i + k``.
        images: folder of the drawings.
        contender: anything that answers requests, in place of ``pretrained``.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "diptych-scenes",
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int | str = 32,
        mode: str = "write",
        seed: int | str = 0,
        images: str = "lmms-images",
        contender: Contender | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        if mode not in ("write", "draw"):
            raise ValueError(f"diptych: mode must be write or draw, got {mode!r}.")
        unknown = [name for name in others if name not in ("max_batch_size", "device_map")]
        if unknown:
            raise ValueError(f"diptych: there is no model argument {unknown[0]!r}.")
        if contender is None:
            from diptych.loading import load

            contender = UnifiedContender(load(pretrained, device=device, dtype=dtype), Path(pretrained).name, "")
        self.contender, self.mode, self.seed, self.images = contender, mode, int(seed), Path(images)
        self.batch_size = int(batch_size)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to each request, cut at what its ``until`` names; a failure is an empty answer."""
        kind = "text" if self.mode == "write" else "image"
        drawn: Counter[tuple[str, Any]] = Counter()
        asked = []
        for number, one in enumerate(requests):
            context, given, doc_to_visual, doc_id, task, split = one.args
            seed = self.seed + 1000 * int(doc_id) + drawn[task, doc_id]
            drawn[task, doc_id] += 1
            parts = self._parts(context, doc_to_visual, doc_id, task, split)
            settings = self.contender.settings(kind, _settings(given) if kind == "text" else {})  # type: ignore[arg-type]
            asked.append(Request(str(number), kind, parts, seed, settings))  # type: ignore[arg-type]
        found: dict[str, str] = {}
        groups: dict[str, list[Request]] = {}
        for request in asked:
            groups.setdefault(json.dumps(dict(request.settings), sort_keys=True, default=str), []).append(request)
        for group in groups.values():
            for start in range(0, len(group), self.batch_size):
                batch = group[start : start + self.batch_size]
                outputs = self.contender.write(batch) if kind == "text" else self.contender.draw(batch)
                found.update({one.id: self._said(one, output) for one, output in zip(batch, outputs, strict=True)})
        return [
            _cut(found[str(number)], one.args[1].get("until")) if kind == "text" else found[str(number)]
            for number, one in enumerate(requests)
        ]

    def _said(self, request: Request, output: Output) -> str:
        if isinstance(output, str):
            return output
        if isinstance(output, np.ndarray):
            self.images.mkdir(parents=True, exist_ok=True)
            path = self.images / f"{request.seed:09d}.png"
            Image.fromarray(output).save(path)
            return json.dumps({"text": "", "images": [str(path)]})
        return "" if isinstance(output, Failure) and self.mode == "write" else json.dumps({"text": "", "images": []})

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Natural log-likelihood of each continuation, and whether it is what the model itself would write."""
        found = []
        for one in requests:
            context, target, doc_to_visual, doc_id, task, split = one.args
            wanted = target if isinstance(target, str) else str(target(self.task_dict[task][split][doc_id]))
            parts = self._parts(context, doc_to_visual, doc_id, task, split)
            settings = self.contender.settings("log_likelihood", {})
            request = Request("0", "log_likelihood", parts, settings=settings, choices=(wanted.strip(),))
            (values,) = self.contender.log_likelihood([request])  # type: ignore[attr-defined]
            (text,) = self.contender.write([Request("0", "text", parts, settings=self.contender.settings("text", {}))])
            found.append((float(values[0]), isinstance(text, str) and text.strip() == wanted.strip()))
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("diptych: tasks of several rounds are not supported.")

    def _parts(self, context: str, doc_to_visual: Any, doc_id: Any, task: str, split: str) -> tuple[Part, ...]:
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) if doc_to_visual is not None else []
        pictures = visuals if isinstance(visuals, list) else [visuals]
        return (*(ImageIn(picture.convert("RGB")) for picture in pictures if picture is not None), Text(context))


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """Sampling settings of lmms-eval in the names of this package; ``do_sample: false`` is a temperature of 0."""
    temperature = float(given.get("temperature") or 0.0) if given.get("do_sample", True) else 0.0
    found: dict[str, Any] = {"max_new_tokens": int(given.get("max_new_tokens", 256)), "temperature": temperature}
    if temperature and given.get("top_p"):
        found["top_p"] = float(given["top_p"])
    return found


def _cut(text: str, until: str | Sequence[str] | None) -> str:
    for end in [until] if isinstance(until, str) else until or ():
        text = text.split(end)[0] if end else text
    return text
