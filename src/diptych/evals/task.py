"""What a benchmark is to the harness: the samples it wants, a judge of each, and a table of them all.

Producing and judging share nothing but files, so a judge may run elsewhere and later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from diptych.data.example import Pixels
from diptych.evals.protocol import Failure, Output, Request
from diptych.scenes.scores import ScoreTable

Verdict: TypeAlias = dict[str, Any]
"""What a judge says of one sample; JSON-able."""

Verdicts: TypeAlias = Mapping[str, Verdict | None]
"""By id of the request: ``None`` is a sample that is missing and counts as wrong; an id that is absent is left out."""


@dataclass(frozen=True)
class Unit:
    """What a score is a mean of: one verdict, paired by ``id`` when two runs are compared."""

    id: str
    category: str
    group: str
    """Units of one group (a prompt, a scene) are not independent: a bootstrap draws whole groups."""
    value: float
    """From 0, wrong, to 1, right."""
    reason: str = ""


@runtime_checkable
class Task(Protocol):
    """A benchmark; a frozen dataclass, so that it can be sent to other processes.

    Two things it may have beside: ``judged_at_once``, how many samples a judge is given between two times that verdicts
    are written, and ``missing_counts_as``, what its ``units`` make of a missing sample where that is not "wrong".
    """

    @property
    def name(self) -> str:
        """As ``--on`` takes it."""
        ...

    @property
    def label(self) -> str:
        """As tables show it, with the split."""
        ...

    @property
    def version(self) -> int:
        """Raised when requests or rules change: scores of two versions are not comparable."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Capabilities without which it is skipped."""
        ...

    def config(self) -> dict[str, Any]:
        """JSON-able: all that decides the requests."""
        ...

    def requests(self) -> list[Request]:
        """The samples, those that others build on first."""
        ...

    def judge_record(self) -> dict[str, Any]:
        """JSON-able: who judges, in which revision. Runs with different records are not comparable."""
        ...

    def unready(self) -> str:
        """Why samples cannot be judged by the task as it was built; empty if they can."""
        ...

    def judge(self, requests: Sequence[Request], outputs: Sequence[Output]) -> Sequence[Verdict | Failure]:
        """A verdict on each of some samples, none of which is a ``Failure``. Pure.

        A ``Failure`` in place of a verdict is a sample that the judge could not judge; it is asked again another time.
        """
        ...

    def units(self, verdicts: Verdicts) -> list[Unit]:
        """What is averaged."""
        ...

    def table(self, verdicts: Verdicts, contender: str) -> ScoreTable:
        """The scores with their intervals."""
        ...

    def references(self) -> list[ScoreTable]:
        """The rows that a score is read against."""
        ...

    def reference_output(self, reference: str, request: Request) -> Pixels | str:
        """What the reference ``oracle`` or ``chance`` answers to a request.

        Raises:
            ValueError: the task has no such reference.
        """
        ...
