"""Reads answers to the questions of the built-in world, and answers them blindly for the row ``chance``."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from diptych.scenes.phrases import NUMBER_WORDS
from diptych.scenes.questions import YES_NO, Question

_NUMBERS = {word: str(number) for number, word in enumerate(NUMBER_WORDS)}
_ARTICLES = ("a", "an", "the")


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation and articles, numbers in digits: ``"The red circle."`` is ``red circle``."""
    words = re.sub(r"[^\w\s]", " ", text.lower()).replace("_", " ").split()
    return " ".join(_NUMBERS.get(word, word) for word in words if word not in _ARTICLES)


def answer_is_correct(prediction: str, asked: Question) -> bool:
    """Whether a model's text gives the answer.

    The whole normalised text must equal the answer; of a yes/no question the first word alone counts ("yes, there is").
    """
    given, wanted = normalize_answer(prediction), normalize_answer(asked.answer)
    if asked.answer in YES_NO:
        return given.split(" ")[0] == wanted
    return given == wanted


@dataclass(frozen=True)
class BlindAnswers:
    """Answers without looking: the most frequent answer in training to questions of the kind with the same choices."""

    table: dict[tuple[str, tuple[str, ...]], str]

    @classmethod
    def fit(cls, questions: Iterable[Question]) -> "BlindAnswers":
        """Counts the answers of training questions (ties: the first in alphabetical order)."""
        counts: dict[tuple[str, tuple[str, ...]], Counter[str]] = {}
        for asked in questions:
            counts.setdefault((asked.kind, asked.choices), Counter())[asked.answer] += 1
        return cls({key: min(tally, key=lambda a: (-tally[a], a)) for key, tally in counts.items()})

    def answer(self, asked: Question) -> str:
        """For choices never seen in training (two named objects) the first of them."""
        return self.table.get((asked.kind, asked.choices), asked.choices[0])
