"""A task of lmms-eval in this harness: ``--on lmms:TASK``, for tasks that ask for words about pictures.

Documents, prompts, the reading of answers and the sums are lmms-eval's own; what is stored is the answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from diptych.data.example import ImageIn, Pixels, Text
from diptych.evals.lmms import needs_lmms
from diptych.evals.lmms.tasks import as_pictures
from diptych.evals.protocol import Output, Request
from diptych.evals.task import Unit, Verdict, Verdicts
from diptych.scenes.scores import Score, ScoreTable, bootstrap_interval

PREFIX = "lmms:"


@lru_cache(maxsize=4)
def _loaded(name: str, include_path: str) -> Any:
    try:
        from lmms_eval.tasks import TaskManager
    except ImportError:
        raise needs_lmms(f"{PREFIX}{name}") from None
    manager = TaskManager(include_path=include_path or None)
    if name not in manager.all_subtasks:
        raise ValueError(
            f"lmms-eval has no task {name!r}. `lmms-eval tasks list` lists them; groups are not supported."
        )
    task = manager.load_task_or_group([name])[name]
    if task.OUTPUT_TYPE != "generate_until":
        raise ValueError(f"{PREFIX}{name}: its output is {task.OUTPUT_TYPE}; only generate_until is supported.")
    return task


@dataclass(frozen=True, kw_only=True)
class LmmsTask:
    """One task of lmms-eval.

    Attributes:
        task: as lmms-eval knows it.
        include_path: folder of further tasks.
        number: only so many documents, the first.
    """

    task: str
    include_path: str = ""
    number: int | None = None
    version: int = 1
    needs: tuple[str, ...] = ("image_to_text",)

    @property
    def name(self) -> str:
        return f"{PREFIX}{self.task}"

    @property
    def label(self) -> str:
        return self.name

    def config(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {"task": self.task, "number": self.number, "lmms_eval": version("lmms-eval")}

    def _documents(self) -> list[Mapping[str, Any]]:
        documents = _loaded(self.task, self.include_path).eval_docs
        return [documents[index] for index in range(min(len(documents), self.number or len(documents)))]

    def requests(self) -> list[Request]:
        task = _loaded(self.task, self.include_path)
        given = task.config.generation_kwargs or {}
        sampled = bool(given.get("do_sample")) and float(given.get("temperature") or 0) > 0
        settings = {
            "max_new_tokens": int(given.get("max_new_tokens", 256)),
            "temperature": float(given["temperature"]) if sampled else 0.0,
        }
        return [
            Request(
                str(index),
                "text",
                (*(ImageIn(one) for one in as_pictures(task.doc_to_visual(doc))), Text(task.doc_to_text(doc))),
                settings=settings,
            )
            for index, doc in enumerate(self._documents())
        ]

    def judge_record(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {"name": "lmms-eval's own rules", "revision": version("lmms-eval")}

    def unready(self) -> str:
        return ""

    def judge(self, requests: Sequence[Request], outputs: Sequence[Output]) -> list[Verdict]:
        return [{"answer": str(output)} for output in outputs]

    def _results(self, verdicts: Verdicts) -> dict[str, dict[str, Any]]:
        """What lmms-eval makes of each answer, by metric; an absent answer is an empty one."""
        task, documents = _loaded(self.task, self.include_path), self._documents()
        return {
            name: task.process_results(documents[int(name)], [verdict["answer"] if verdict else ""])
            for name, verdict in verdicts.items()
        }

    def units(self, verdicts: Verdicts) -> list[Unit]:
        """The first metric by document where it is a number, else whether its answer has a ``score`` of its own."""
        metric = next(iter(_loaded(self.task, self.include_path).aggregation()))
        return [
            Unit(name, metric, name, _number(result.get(metric))) for name, result in self._results(verdicts).items()
        ]

    def table(self, verdicts: Verdicts, contender: str) -> ScoreTable:
        """Metrics as lmms-eval sums them up; the first one is the headline, with an interval where it is a mean."""
        task, results = _loaded(self.task, self.include_path), self._results(verdicts)
        found: dict[str, Score] = {}
        for metric, aggregate in task.aggregation().items():
            given = [result[metric] for result in results.values() if metric in result]
            if not given:
                continue
            value = float(aggregate(given))
            low = high = value
            if all(isinstance(one, int | float) and 0 <= one <= 1 for one in given):
                low, high = bootstrap_interval(given)
            found[metric] = Score(value, low, high, len(given), len(given))
        if not found:
            raise ValueError(f"{self.name}: lmms-eval gave no metric for its {len(results)} answers.")
        first = next(iter(found))
        details = {"overall_is": f"{first} as lmms-eval sums it up; without an interval where it is no plain mean."}
        return ScoreTable(self.label, contender, found[first], found, details)

    def references(self) -> list[ScoreTable]:
        """None: lmms-eval has none."""
        return []

    def reference_output(self, reference: str, request: Request) -> Pixels | str:
        raise ValueError(f"{self.name} has no {reference}.")


def _number(value: Any) -> float:
    value = value.get("score", 0.0) if isinstance(value, Mapping) else value
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else 0.0
