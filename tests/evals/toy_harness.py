"""A benchmark whose requests build on each other, and a contender that is a formula: quick, exact, and able to be slow.

Run as a script it produces into a folder, until it is killed or done; as ``kill-everywhere`` it is killed at each file
that it touches, and started again.
"""

import hashlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.example import ImageIn, Text, load_pixels
from diptych.evals.manifest import EvaluationFolder, read_lines
from diptych.evals.produce import plan, produce
from diptych.evals.protocol import Earlier, Output, Request
from diptych.evals.task import Unit, Verdict, Verdicts
from diptych.scenes.scores import ScoreTable, score_table


@dataclass(frozen=True, kw_only=True)
class Retell:
    """Draw a number, say what was drawn, draw what was said: the two drawings should be equal."""

    number: int = 5
    seed: int = 0
    name: str = "retell"
    label: str = "retell"
    version: int = 1
    needs: tuple[str, ...] = ("text_to_image", "image_to_text")

    def config(self) -> dict[str, Any]:
        return {"number": self.number, "seed": self.seed}

    def requests(self) -> list[Request]:
        found = []
        for i in range(self.number):
            told = "x" * (self.number - i)
            found += [
                Request(f"{i}/drawn", "image", (Text(f"{told} {i}"),), self.seed + i),
                Request(f"{i}/said", "text", (Earlier(f"{i}/drawn"), Text("What is it?"))),
                Request(f"{i}/again", "image", (Text("draw"), Earlier(f"{i}/said")), self.seed + i),
            ]
        return found

    def judge_record(self) -> dict[str, Any]:
        return {"name": "formula", "revision": "1"}

    def unready(self) -> str:
        return ""

    def judge(self, requests: Sequence[Request], outputs: Sequence[Output]) -> list[Verdict]:
        return [
            {"seen": output if isinstance(output, str) else hashlib.sha256(output.tobytes()).hexdigest()}
            for output in outputs
        ]

    def units(self, verdicts: Verdicts) -> list[Unit]:
        found = []
        for i in range(self.number):
            if f"{i}/said" in verdicts and f"{i}/drawn" in verdicts:
                said, drawn = verdicts[f"{i}/said"], verdicts[f"{i}/drawn"]
                agree = said is not None and drawn is not None and said["seen"] == drawn["seen"]
                found.append(Unit(str(i), "all", str(i), float(agree)))
        return found

    def table(self, verdicts: Verdicts, contender: str) -> ScoreTable:
        units = self.units(verdicts)
        return score_table(self.label, contender, [unit.category for unit in units], [unit.value for unit in units])

    def references(self) -> list[ScoreTable]:
        return []

    def reference_output(self, reference: str, request: Request) -> Any:
        raise ValueError(f"retell has no {reference}")


class Formula:
    """Draws a hash of prompt and seed; says the hash of what it sees."""

    name = "formula"
    capabilities = ("text", "image_to_text", "text_to_image", "image_edit")
    image_size = (4, 5)

    def __init__(self, seconds: float = 0.0, steps: int = 20, size: tuple[int, int] = (4, 5)) -> None:
        self.seconds, self.steps, self.size = seconds, steps, size
        self.batches: list[list[str]] = []

    def identity(self) -> dict[str, Any]:
        return {"formula": 1}

    def settings(self, kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"steps": self.steps, "size": [4, 5], **given} if kind == "image" else {**given}

    def draw(self, requests: Sequence[Request]) -> list[Output]:
        self._work(requests)
        return [self._picture(request) for request in requests]

    def write(self, requests: Sequence[Request]) -> list[Output]:
        self._work(requests)
        pictures = [[part.image for part in request.parts if isinstance(part, ImageIn)] for request in requests]
        return [hashlib.sha256(load_pixels(seen[0]).tobytes()).hexdigest() for seen in pictures]

    def _work(self, requests: Sequence[Request]) -> None:
        self.batches.append([request.id for request in requests])
        time.sleep(self.seconds)

    def _picture(self, request: Request) -> Output:
        said = "".join(part.text for part in request.parts if isinstance(part, Text))
        digest = hashlib.sha256(f"{said}|{request.seed}|{self.steps}".encode()).digest()
        return np.resize(np.frombuffer(digest, np.uint8), (*self.size, 3))


def slow_formula() -> Formula:
    return Formula(seconds=0.02)


TOUCHES = ("open", "os.rename", "os.mkdir", "os.remove")
"""Events of the interpreter (``sys.addaudithook``) at which a file is opened, renamed, made or removed."""


def kill_everywhere(root: Path) -> int:
    """Kills a run at its first, second, … touch of a file of its own, and ends it; how many places there were.

    Raises:
        AssertionError: a sample was lost or has two rows.
    """
    task, place = Retell(number=2), 0
    planned = plan(task, Formula())
    while True:
        folder = EvaluationFolder(root / f"{place:03d}")
        child = os.fork()
        if child == 0:
            left = [place]

            def hook(event: str, arguments: tuple[Any, ...], folder: str = str(folder.path), left: list[int] = left):
                if event in TOUCHES and folder in str(arguments[0]):
                    left[0] -= 1
                    if left[0] < 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            produce(folder, task, Formula(), planned, batch_size=2)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return place
        produce(folder, task, Formula(), planned, batch_size=2)
        rows = Counter(row["key"] for row in read_lines(folder.manifest))
        assert rows == dict.fromkeys((item.key for item in planned), 1), f"killed at touch {place}: {rows}"
        assert all(folder.is_whole(row) for row in folder.rows().values())
        place += 1


if __name__ == "__main__":
    if sys.argv[1] == "kill-everywhere":
        print(kill_everywhere(Path(sys.argv[2])))
    else:
        task, contender = Retell(number=int(sys.argv[2])), slow_formula()
        produce(EvaluationFolder(sys.argv[1]), task, contender, plan(task, contender), batch_size=3)
