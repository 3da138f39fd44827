"""XTC-Bench on the built-in world (``scenes.consistency``): questions about scenes, drawings from their captions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from diptych.data.example import ImageIn, Pixels, Text
from diptych.evals.protocol import Output, Request
from diptych.evals.score import reference_tables
from diptych.evals.task import Unit, Verdict, Verdicts
from diptych.evals.tasks.scenes import MAX_NEW_TOKENS, SceneItems
from diptych.scenes.answers import answer_is_correct
from diptych.scenes.consistency import (
    CONSISTENCY,
    MIN_SIMILARITY,
    ConsistencyItem,
    Fact,
    FactScore,
    consistency_items,
    consistency_table,
    fact_holds,
    match_objects,
)
from diptych.scenes.parse import parse
from diptych.scenes.phrases import pick
from diptych.scenes.sample import sample_scene
from diptych.scenes.scores import ScoreTable

SAMPLES = 4
"""Drawings of each scene: with one, nothing would be known of how much they vary."""


@dataclass(frozen=True, kw_only=True)
class CrossTaskConsistency(SceneItems):
    """Every fact asked once about the scene's picture, and looked for in ``samples`` drawings of its caption."""

    name: str = "xtc"
    samples: int = SAMPLES
    needs: tuple[str, ...] = ("image_to_text", "text_to_image")

    @property
    def label(self) -> str:
        return CONSISTENCY + self.mark

    def config(self) -> dict[str, Any]:
        return {**super().config(), "samples": self.samples}

    def judge_record(self) -> dict[str, Any]:
        return {"name": "exact rules of the built-in world", "revision": "1", "min_similarity": MIN_SIMILARITY}

    @cached_property
    def items(self) -> list[ConsistencyItem]:
        return consistency_items(self.split, self.num_per_category, self.seed)

    @cached_property
    def _asked(self) -> dict[str, tuple[ConsistencyItem, Fact | None]]:
        """What every request is about: a fact that is asked, or a drawing."""
        found: dict[str, tuple[ConsistencyItem, Fact | None]] = {}
        for item in self.items:
            found |= {f"{item.id}/fact-{number:02d}": (item, fact) for number, fact in enumerate(item.facts)}
            found |= {f"{item.id}/drawing-{number:02d}": (item, None) for number in range(self.samples)}
        return found

    def requests(self) -> list[Request]:
        """Drawing k of scene i has the seed ``seed + i * samples + k``."""
        requests = []
        pictures = {item.id: ImageIn(self._picture(item.scene)) for item in self.items}
        seed = self.seed
        for name, (item, fact) in self._asked.items():
            if fact is None:
                requests.append(Request(name, "image", (Text(item.caption),), seed))
                seed += 1
            else:
                parts = (pictures[item.id], Text(fact.question.text))
                requests.append(Request(name, "text", parts, settings={"max_new_tokens": MAX_NEW_TOKENS}))
        return requests

    def judge(self, requests: Sequence[Request], outputs: Sequence[Output]) -> list[Verdict]:
        return [
            self._verdict(*self._asked[request.id], output) for request, output in zip(requests, outputs, strict=True)
        ]

    def _verdict(self, item: ConsistencyItem, fact: Fact | None, output: Output) -> Verdict:
        if fact is not None:
            return {"u": int(answer_is_correct(str(output), fact.question)), "answer": output}
        assert isinstance(output, np.ndarray)
        drawn = parse(output).scene
        matches = match_objects(item.scene.objects, drawn.objects)
        loose = match_objects(item.scene.objects, drawn.objects, min_similarity=0.0)
        return {
            "g": [int(fact_holds(fact, drawn, matches)) for fact in item.facts],
            "g_unrejected": [int(fact_holds(fact, drawn, loose)) for fact in item.facts],
            "matched": [all(matches[index] is not None for index in fact.objects) for fact in item.facts],
        }

    def facts(self, verdicts: Verdicts) -> list[FactScore]:
        """Every fact in every drawing; what is missing is wrong, what is absent is left out."""
        found = []
        for item in self.items:
            drawings = [f"{item.id}/drawing-{number:02d}" for number in range(self.samples)]
            for number, fact in enumerate(item.facts):
                name = f"{item.id}/fact-{number:02d}"
                if name in verdicts:
                    drawn = [drawing for drawing in drawings if drawing in verdicts]
                    answered = verdicts[name]
                    found += [
                        _fact_score(item, fact, number, answered, verdicts[drawing], f"{name}/{drawing[-2:]}")
                        for drawing in drawn
                    ]
        return found

    def units(self, verdicts: Verdicts) -> list[Unit]:
        return [Unit(fact.id, fact.kind, fact.group, fact.weighted) for fact in self.facts(verdicts)]

    def table(self, verdicts: Verdicts, contender: str) -> ScoreTable:
        return consistency_table(self.facts(verdicts), contender, self.label)

    def references(self) -> list[ScoreTable]:
        return reference_tables(self, self.image_size)

    def reference_output(self, reference: str, request: Request) -> Pixels | str:
        """``oracle``: the scene drawn and its answers; ``chance``: a random scene, one of the possible answers."""
        item, fact = self._asked[request.id]
        rng = np.random.default_rng([self.seed, *request.id.encode()])
        if fact is not None:
            return fact.question.answer if reference == "oracle" else pick(rng, fact.question.choices)
        return self._picture(item.scene if reference == "oracle" else sample_scene(rng))


def _fact_score(
    item: ConsistencyItem,
    fact: Fact,
    number: int,
    answered: Mapping[str, Any] | None,
    drawn: Mapping[str, Any] | None,
    name: str,
) -> FactScore:
    return FactScore(
        group=item.id,
        kind=fact.kind,
        u=float(answered["u"]) if answered else 0.0,
        g=float(drawn["g"][number]) if drawn else 0.0,
        matched=bool(drawn["matched"][number]) if drawn else False,
        g_unrejected=float(drawn["g_unrejected"][number]) if drawn else 0.0,
        id=name,
    )
