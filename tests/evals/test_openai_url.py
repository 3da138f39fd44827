"""A server with OpenAI's interface as a contender, against a real server on this machine."""

import base64
import io
import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diptych.data.example import ImageIn, Text
from diptych.evals.judges import ContenderJudge, Query
from diptych.evals.openai_url import OpenAIContender
from diptych.evals.protocol import Failure, Request

RED = np.full((8, 6, 3), (255, 0, 0), np.uint8)


def png(color, size):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format="PNG")
    return buffer.getvalue()


class Server(BaseHTTPRequestHandler):
    """Draws green in the size asked for; says what it was asked; answers with what ``refusals`` holds first."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        state = self.server.state
        state.calls.append((self.path, dict(self.headers), body))
        if state.sleeps:
            time.sleep(state.sleeps.pop(0))
        if state.refusals:
            code, text = state.refusals.pop(0)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())
            return
        if self.path.endswith("chat/completions"):
            asked = json.loads(body)
            content = asked["messages"][-1]["content"]
            said = f"{len(content)} parts, {content[-1].get('text')}, seed {asked['seed']}"
            answer = {"choices": [{"message": {"content": said}}]}
            if asked.get("logprobs"):
                likely = [{"token": token, "logprob": math.log(value)} for token, value in state.likely]
                answer["choices"][0]["logprobs"] = {"content": [{"token": "x", "top_logprobs": likely}]}
        else:
            size = (6, 8)
            if "generations" in self.path:
                size = tuple(int(side) for side in json.loads(body)["size"].split("x"))
            answer = {"data": [{"b64_json": base64.b64encode(png("lime", size)).decode()}]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    made.state = SimpleNamespace(calls=[], refusals=[], likely=[], sleeps=[])
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def contender(server):
    return OpenAIContender(f"http://127.0.0.1:{server.server_port}/v1/", "a-model", (8, 6), wait=0.01)


def request(contender, kind, *parts, seed=0):
    return Request("a", kind, parts, seed, contender.settings(kind, {}))


def test_answers_in_order_with_pictures_and_seeds(server, contender, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "the-key")
    asked = [request(contender, "text", ImageIn(RED), Text(f"question {i}"), seed=i) for i in range(12)]
    assert contender.write(asked) == [f"2 parts, question {i}, seed {i}" for i in range(12)]
    path, headers, body = server.state.calls[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer the-key"
    sent = json.loads(body)
    assert sent["model"] == "a-model" and sent["temperature"] == 0.0 and sent["max_tokens"] == 256
    url = sent["messages"][0]["content"][0]["image_url"]["url"]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
    assert (shown == RED).all()


def test_first_tokens_with_their_probabilities(server, contender):
    server.state.likely = [("Yes", 0.5), (" yes", 0.25), ("No", 0.2)]
    query = Query("a#1", RED, "Is it red? Answer in one word.", ("yes", "Yes", " yes", " Yes"))
    judge = ContenderJudge(contender)
    assert judge.ask([query])[0].probability == pytest.approx(0.75)
    sent = json.loads(server.state.calls[0][2])
    assert (sent["max_tokens"], sent["logprobs"], sent["top_logprobs"]) == (1, True, 20)
    assert judge.record() == {"name": "a-model", "revision": json.dumps(contender.identity())}
    server.state.refusals[:] = [(200, '{"choices": [{"message": {"content": "Yes"}}]}')]
    (found,) = judge.ask([query])
    assert found.reason.startswith("the server's answer holds no log-probabilities:")


def test_roles_become_messages(server, contender):
    contender.write([request(contender, "text", Text("Be short.", role="system"), Text("a"), Text("b"))])
    messages = json.loads(server.state.calls[0][2])["messages"]
    assert [(message["role"], len(message["content"])) for message in messages] == [("system", 1), ("user", 2)]


def test_drawings_and_edits(server, contender):
    (drawn,) = contender.draw([request(contender, "image", Text("a circle"), seed=7)])
    assert drawn.shape == (8, 6, 3) and (drawn == (0, 255, 0)).all()
    assert json.loads(server.state.calls[0][2])["seed"] == 7
    (edited,) = contender.draw([request(contender, "image", ImageIn(RED), Text("make it green"))])
    path, headers, body = server.state.calls[1]
    assert path == "/v1/images/edits" and headers["Content-Type"].startswith("multipart/form-data")
    assert png("red", (6, 8)) in body and b"make it green" in body and edited.shape == (8, 6, 3)


def test_a_busy_server_is_asked_again_and_a_refusal_is_a_failure(server, contender):
    server.state.refusals[:] = [(429, "busy"), (503, "busy")]
    assert contender.write([request(contender, "text", Text("hello"))]) == ["1 parts, hello, seed 0"]
    server.state.refusals[:] = [(400, "no such size")]
    assert contender.draw([request(contender, "image", Text("x"))]) == [
        Failure("the server answered 400: no such size")
    ]
    server.state.refusals[:] = [(500, "broken")] * 9
    assert contender.write([request(contender, "text", Text("x"))]) == [
        Failure("the server answered 500: broken, 4 times")
    ]


def test_a_server_that_does_not_answer_in_time_is_asked_again_and_then_left(server):
    late = OpenAIContender(f"http://127.0.0.1:{server.server_port}/v1/", "m", wait=0.01, timeout=0.1, tries=2)
    server.state.sleeps[:] = [0.3, 0.0]
    assert late.write([request(late, "text", Text("hello"))]) == ["1 parts, hello, seed 0"]
    server.state.sleeps[:] = [0.3, 0.3]
    answers = ContenderJudge(late).ask([Query("a#1", RED, "Is it red?")])
    assert answers == [Failure("the judge gave no answer: the server did not answer in 0.1 s, 2 times")]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("no json", "the server's answer is no JSON"),
        ("{}", "the server's answer holds no picture: {}"),
        ('{"data": [{"b64_json": "AAAA"}]}', "the server's picture cannot be read"),
        ('{"data": [{"b64_json": "?"}]}', "the server's picture cannot be read"),
    ],
)
def test_answers_that_are_none(server, contender, answer, reason):
    server.state.refusals[:] = [(200, answer)]
    (failure,) = contender.draw([request(contender, "image", Text("x"))])
    assert isinstance(failure, Failure) and failure.reason.startswith(reason)


def test_no_server_stops_the_run():
    contender = OpenAIContender("http://127.0.0.1:9/v1", "m", wait=0.01)
    with pytest.raises(
        OSError, match=r"the server http://127\.0\.0\.1:9/v1 cannot be reached \(.*What was made is kept"
    ):
        contender.write([request(contender, "text", Text("x"))])
    with pytest.raises(ValueError, match="a server is named as URL#MODEL"):
        OpenAIContender.from_address("http://127.0.0.1:9/v1")
    with pytest.raises(ValueError, match="a server has no setting 'num_steps' of image"):
        contender.settings("image", {"num_steps": 3})
