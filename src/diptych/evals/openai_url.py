"""A server with OpenAI's interface as a contender: chat completions to write, image generations and edits to draw.

What the server is cannot be seen from outside: its address and model name are all of its identity, so samples of a
server that was changed under one name are not made again.
"""

import base64
import binascii
import io
import json
import math
import os
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from diptych.data.example import ImageIn, ImageOut, Pixels, Text, load_pixels
from diptych.evals.protocol import Failure, Kind, Output, Request

KEY_VARIABLE = "OPENAI_API_KEY"
"""Environment variable with the key, where the server wants one."""
BUSY = (408, 409, 429, 500, 502, 503, 504)
"""Answers after which a request is sent again."""
PARALLEL = 8
TOP_TOKENS = 20
"""How many of the likeliest first tokens a server is asked for; more than that OpenAI's interface does not give."""


class OpenAIContender:
    """A model behind a URL.

    Args:
        url: up to and with ``/v1``.
        model: its name at the server.
        image_size: (height, width) of pictures that are shown and drawn.
        tries: how often a request is sent to a busy server; the waits between are ``wait``, twice, four times …
        wait: seconds.
    """

    capabilities = ("text", "image_to_text", "text_to_image", "image_edit")

    def __init__(
        self,
        url: str,
        model: str,
        image_size: tuple[int, int] = (512, 512),
        *,
        tries: int = 4,
        wait: float = 2.0,
        timeout: float = 300.0,
    ) -> None:
        self.url, self.model, self.image_size = url.rstrip("/"), model, image_size
        self.tries, self.wait, self.timeout = tries, wait, timeout
        self.name = model

    @classmethod
    def from_address(cls, address: str, image_size: tuple[int, int] = (512, 512)) -> "OpenAIContender":
        """From ``URL#NAME``.

        Raises:
            ValueError: there is no name.
        """
        url, _, model = address.partition("#")
        if not model:
            raise ValueError(
                f"a server is named as URL#MODEL, such as http://localhost:8000/v1#my-model, got {address!r}."
            )
        return cls(url, model, image_size)

    def identity(self) -> dict[str, Any]:
        return {"url": self.url, "model": self.model}

    def settings(self, kind: Kind, given: Mapping[str, Any]) -> dict[str, Any]:
        defaults: dict[str, Any] = {"size": list(self.image_size)}
        if kind != "image":
            defaults = {"max_new_tokens": 256, "temperature": 0.0, "top_p": 1.0}
        unknown = sorted(set(given) - set(defaults))
        if unknown:
            raise ValueError(f"{self.name}: a server has no setting {unknown[0]!r} of {kind}. Leave it out.")
        settings = {**defaults, **given}
        if kind == "image":
            settings["size"] = [int(side) for side in settings["size"]]
        return settings

    def draw(self, requests: Sequence[Request]) -> list[Output]:
        return self._all(self._drawing, requests)

    def write(self, requests: Sequence[Request]) -> list[Output]:
        return self._all(self._answer, requests)

    def first_tokens(self, requests: Sequence[Request]) -> list[dict[str, float] | Failure]:
        """For each request the probabilities of the likeliest first tokens of an answer, by token."""
        return self._all(self._first_tokens, requests)

    def _first_tokens(self, request: Request) -> dict[str, float] | Failure:
        body = {
            "model": self.model,
            "messages": _messages(request),
            "max_tokens": 1,
            "temperature": 0.0,
            "seed": request.seed,
            "logprobs": True,
            "top_logprobs": TOP_TOKENS,
        }
        answer = self._post("chat/completions", json.dumps(body).encode(), "application/json")
        if isinstance(answer, Failure):
            return answer
        found: dict[str, float] = {}
        try:
            for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
                found[entry["token"]] = found.get(entry["token"], 0.0) + math.exp(entry["logprob"])
        except (KeyError, IndexError, TypeError):
            return Failure(f"the server's answer holds no log-probabilities: {_shortened(answer)}")
        return found

    def _all(self, work: Any, requests: Sequence[Request]) -> list[Any]:
        with ThreadPoolExecutor(PARALLEL) as pool:
            return list(pool.map(work, requests))

    def _answer(self, request: Request) -> Output:
        body = {
            "model": self.model,
            "messages": _messages(request),
            "max_tokens": request.settings["max_new_tokens"],
            "temperature": request.settings["temperature"],
            "top_p": request.settings["top_p"],
            "seed": request.seed,
        }
        answer = self._post("chat/completions", json.dumps(body).encode(), "application/json")
        if isinstance(answer, Failure):
            return answer
        try:
            return str(answer["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError):
            return Failure(f"the server's answer holds no message: {_shortened(answer)}")

    def _drawing(self, request: Request) -> Output:
        height, width = request.settings["size"]
        prompt = "\n".join(part.text for part in request.parts if isinstance(part, Text))
        fields = {"model": self.model, "prompt": prompt, "n": 1, "size": f"{width}x{height}", "seed": request.seed,
                  "response_format": "b64_json"}  # fmt: skip
        pictures = [
            load_pixels(part.image)
            for part in request.parts
            if isinstance(part, ImageIn | ImageOut) and part.image is not None
        ]
        if pictures:
            body, kind = _form(fields, pictures)
            answer = self._post("images/edits", body, kind)
        else:
            answer = self._post("images/generations", json.dumps(fields).encode(), "application/json")
        if isinstance(answer, Failure):
            return answer
        try:
            content = base64.b64decode(answer["data"][0]["b64_json"], validate=True)
            with Image.open(io.BytesIO(content)) as image:
                return np.asarray(image.convert("RGB"))
        except (KeyError, IndexError, TypeError):
            return Failure(f"the server's answer holds no picture: {_shortened(answer)}")
        except (binascii.Error, OSError, SyntaxError, ValueError) as error:
            return Failure(f"the server's picture cannot be read: {error}")

    def _post(self, path: str, body: bytes, kind: str) -> Any:
        """The JSON of the answer; a ``Failure`` where the server refuses.

        Raises:
            OSError: it cannot be reached.
        """
        headers = {"Content-Type": kind}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        reason = ""
        for turn in range(self.tries):
            if turn:
                time.sleep(self.wait * 2 ** (turn - 1))
            call = urllib.request.Request(f"{self.url}/{path}", body, headers)
            try:
                with urllib.request.urlopen(call, timeout=self.timeout) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                reason = f"the server answered {error.code}: {_shortened(error.read().decode('utf-8', 'replace'))}"
                if error.code not in BUSY:
                    return Failure(reason)
            except TimeoutError:
                reason = f"the server did not answer in {self.timeout:g} s"
            except ValueError as error:
                return Failure(f"the server's answer is no JSON ({error})")
            except OSError as error:
                why = getattr(error, "reason", error)
                raise OSError(
                    f"the server {self.url} cannot be reached ({why}). What was made is kept: run the command again."
                ) from None
        return Failure(f"{reason}, {self.tries} times")


def _messages(request: Request) -> list[dict[str, Any]]:
    """Consecutive parts of one role as one message."""
    messages: list[dict[str, Any]] = []
    for part in request.parts:
        assert isinstance(part, Text | ImageIn | ImageOut)
        if isinstance(part, Text):
            content: dict[str, Any] = {"type": "text", "text": part.text}
        else:
            assert part.image is not None
            encoded = base64.b64encode(_png(load_pixels(part.image))).decode()
            content = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}
        if not messages or messages[-1]["role"] != part.role:
            messages.append({"role": part.role, "content": []})
        messages[-1]["content"].append(content)
    return messages


def _form(fields: Mapping[str, Any], pictures: Sequence[Pixels]) -> tuple[bytes, str]:
    """A multipart form with pictures, and its content type."""
    mark = uuid.uuid4().hex
    body = io.BytesIO()
    for name, value in fields.items():
        body.write(f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
    for index, picture in enumerate(pictures):
        head = f'form-data; name="image[]"; filename="{index}.png"'
        body.write(f"--{mark}\r\nContent-Disposition: {head}\r\nContent-Type: image/png\r\n\r\n".encode())
        body.write(_png(picture) + b"\r\n")
    body.write(f"--{mark}--\r\n".encode())
    return body.getvalue(), f"multipart/form-data; boundary={mark}"


def _png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _shortened(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
