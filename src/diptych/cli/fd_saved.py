"""``fd.json``: what ``diptych fd`` has found, which networks are missing, and what a repeated command takes over."""

import hashlib
import json
import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diptych import __version__
from diptych.cli.fd_report import Score

if TYPE_CHECKING:
    from diptych.cli.fd_sides import Work
    from diptych.frechet.features import Features


@dataclass(frozen=True)
class SavedScores:
    """The file of one command.

    Attributes:
        keys: what decides the score of each network (`score_key`), by its word on the command line.
    """

    path: Path
    arguments: Namespace
    keys: dict[str, str]

    def known(self) -> dict[str, Score]:
        """Scores that the file has of an earlier run of the same thing, by the word of the network."""
        try:
            saved = json.loads(self.path.read_text(encoding="utf-8"))["scores"]
            by_key = {score["key"]: Score.from_dict(score) for score in saved}
        except (OSError, ValueError, KeyError, TypeError):
            return {}  # none, or of another version
        return {spec: by_key[key] for spec, key in self.keys.items() if key in by_key}

    def write(self, scores: dict[str, Score], fdr_k: float | None = None) -> None:
        """Whole or not at all; networks without a score are named as missing."""
        import torch

        missing = [spec for spec in self.keys if spec not in scores]
        content = {
            "complete": not missing,
            "missing": missing,
            "generated": self.arguments.generated,
            "reference": self.arguments.reference,
            "val": self.arguments.val,
            "scores": [{**scores[spec].to_dict(), "key": key} for spec, key in self.keys.items() if spec in scores],
            "fdr_k": fdr_k,
            "versions": {"diptych": __version__, "torch": torch.__version__},
            "command": self.arguments.words,
        }
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        temporary = self.path.with_name(f".unfinished-{os.getpid()}-{self.path.name}")
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)


def score_key(arguments: Namespace, features: "Features", work: "Work", others: Sequence[str]) -> str:
    """A hash of everything that decides a score: both sides as they are now, network, preprocessing and options."""
    from diptych.cli.fd_sides import side_identity

    words = (arguments.generated, arguments.reference, arguments.val)
    about = {
        "sides": [None if word is None else (word, side_identity(word, work)) for word in words],
        "network": features.network_id,
        "preprocessing": features.fingerprint,
        "pixels": asdict(work.rule),
        "others": list(others),
        "paper_normalisers": arguments.paper_normalisers,
        "seed": work.seed,
        "max_bad": work.max_bad,
        "version": __version__,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
