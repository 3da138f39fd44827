"""The sides of ``diptych fd``: what a word on the command line names, and its moments with what is known about it."""

import hashlib
import multiprocessing
import os
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.pictures import Picture, PictureSet, open_pictures
from diptych.frechet.extraction import (
    CHUNK_SIZE,
    ExtractedSet,
    PixelRule,
    extract,
    extraction_folder,
    missing_chunks,
    read_extracted,
)
from diptych.frechet.features import Features
from diptych.frechet.moments import Moments
from diptych.frechet.preprocessing import FeatureDtype
from diptych.frechet.ratio import NUM_GROUPS

MODEL_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Work:
    """How features are computed; goes to other processes as it is."""

    cache: Path
    rule: PixelRule
    dtype: FeatureDtype = "float32"
    batch_size: int = 64
    num_processes: int = 1
    device: str = "cpu"
    split: str = "train"
    seed: int = 0
    max_bad: float = 0.01


@dataclass(frozen=True)
class Side:
    """One side in one representation."""

    name: str
    groups: list[Moments]
    """One, where statistics were given; else ten, for the interval."""
    extracted: ExtractedSet | None

    @property
    def count(self) -> int | None:
        counts = [group.count for group in self.groups]
        return None if None in counts else sum(count or 0 for count in counts)


class DrawnPictures:
    """What a model draws for the lines of a file; one picture a line, drawn when it is read."""

    def __init__(self, model: str, prompts: Path, work: Work) -> None:
        from diptych.cli.models import folder_fingerprint

        self._name = model
        self._work = work
        self._prompts = [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not self._prompts:
            raise ValueError(f"no prompt in {prompts}: it needs one a line.")
        text = "\n".join([folder_fingerprint(model), str(work.seed), *self._prompts])
        self.identity = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._model: Any = None

    def __len__(self) -> int:
        return len(self._prompts)

    def read(self, start: int, stop: int) -> Iterator[Picture]:
        from diptych.loading import load

        self._model = self._model or load(self._name, device=self._work.device)
        for first in range(start, stop, MODEL_BATCH):
            last = min(first + MODEL_BATCH, stop)
            seeds = [self._work.seed + index for index in range(first, last)]
            for index, image in enumerate(self._model.generate_image(self._prompts[first:last], seed=seeds), first):
                yield Picture(f"{self._name}: {self._prompts[index]!r}", np.asarray(image.convert("RGB")), "PNG")


def open_side(word: str, work: Work) -> PictureSet | Path:
    """Pictures, or the path of a file of statistics.

    Raises:
        FileNotFoundError, ValueError: see ``open_pictures``.
    """
    path = Path(word).expanduser()
    if path.suffix == ".npz" and path.is_file() and holds_statistics(path):
        return path
    model, at, prompts = word.rpartition("@")
    if at and not path.exists() and Path(prompts).is_file():
        return DrawnPictures(model, Path(prompts), work)
    return open_pictures(word, work.split)


def holds_statistics(path: Path) -> bool:
    """Whether an ``.npz`` holds a mean and a covariance rather than images."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {"mu", "sigma"} <= set(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False


def side_identity(word: str, work: Work) -> str:
    """A hash that changes if what the word stands for does."""
    opened = open_side(word, work)
    return hashlib.sha256(opened.read_bytes()).hexdigest()[:16] if isinstance(opened, Path) else opened.identity


def check_statistics(words: Sequence[str], features: Features, work: Work) -> None:
    """Looks at the sides that are statistics, before features of the others are computed.

    Raises:
        ValueError: one is of another network or preprocessing, or damaged.
    """
    for word in words:
        opened = open_side(word, work)
        if isinstance(opened, Path):
            _check_statistics(_load_statistics(opened), opened, features)


def measure_side(word: str, spec: str, features: Features, work: Work) -> Side:
    """Moments of a side in one representation; features that are not in the cache are computed, with progress.

    Raises:
        ValueError: too many pictures are broken, fewer than two are sound, or statistics are of another network.
    """
    opened = open_side(word, work)
    if isinstance(opened, Path):
        moments = _load_statistics(opened)
        _check_statistics(moments, opened, features)
        return Side(word, [moments], None)
    folder = extraction_folder(work.cache, opened, features, work.rule)
    if missing_chunks(folder, len(opened)):
        _extract(word, opened, spec, features, folder, work)
    extracted = read_extracted(folder, len(opened))
    if len(extracted.faults) > work.max_bad * len(opened):
        name, fault = extracted.faults[0]
        raise ValueError(
            f"{word}: {len(extracted.faults)} of {len(opened)} pictures cannot be read, the first is {name}: {fault}. "
            f"More than {work.max_bad:.1%} are not accepted; --max-bad changes that. The others' features are kept."
        )
    num = len(extracted.features)
    if num < 2:
        raise ValueError(f"{word}: a covariance needs at least 2 pictures, got {num}.")
    groups = extracted.grouped_moments(features, NUM_GROUPS if num >= 2 * NUM_GROUPS else 1)
    return Side(word, groups, extracted)


def _load_statistics(path: Path) -> Moments:
    try:
        return Moments.load(path)
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _check_statistics(moments: Moments, path: Path, features: Features) -> None:
    for field, own in (
        ("dim", features.dim),
        ("network", features.network_id),
        ("preprocessing", features.fingerprint),
    ):
        given = getattr(moments, field)
        if given is not None and given != own:
            raise ValueError(
                f"{path}: these statistics are of another kind of features: {field} is {given!r} there and {own!r} for "
                f"{features.name}. Choose --features that fit, or give the images."
            )


def _extract(word: str, pictures: PictureSet, spec: str, features: Features, folder: Path, work: Work) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:
        task = bars.add_task(f"{features.name}: {Path(word).name or word}", total=len(pictures))

        def report(done: int) -> None:
            bars.update(task, completed=done)

        if work.num_processes == 1:
            extract(
                pictures,
                features,
                folder,
                rule=work.rule,
                batch_size=work.batch_size,
                device=work.device,
                progress=report,
            )
        else:
            _extract_in_processes(word, spec, folder, work, len(pictures), report)


def _extract_in_processes(word: str, spec: str, folder: Path, work: Work, num_pictures: int, report: Any) -> None:
    context = multiprocessing.get_context("spawn")
    missing = missing_chunks(folder, num_pictures)
    count = min(work.num_processes, len(missing))
    # every process is told the chunks that are missing now: those of another one may be done before it looks
    failures: Any = context.SimpleQueue()
    processes = [
        context.Process(target=_work, args=(word, spec, folder, work, missing[rank::count], failures), daemon=True)
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    try:
        while any(process.is_alive() for process in processes):
            left = len(missing_chunks(folder, num_pictures))
            report(round(num_pictures * (1 - left / -(-num_pictures // CHUNK_SIZE))))
            if any(process.exitcode for process in processes):
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            if any(other.exitcode for other in processes):
                process.terminate()
            process.join()
    failed = [process.exitcode for process in processes if process.exitcode]
    if not failures.empty():
        raise ValueError(failures.get())
    if failed:
        raise ValueError(f"{word}: a process ended with code {failed[0]}. Finished chunks are kept; run it again.")


def _work(word: str, spec: str, folder: Path, work: Work, numbers: Sequence[int], failures: Any) -> None:
    """One process of several."""
    import torch

    from diptych.cli.processes import num_cores
    from diptych.interop.feature_networks import load_features

    torch.set_num_threads(max(1, num_cores() // work.num_processes))
    opened = open_side(word, replace(work, num_processes=1))
    if isinstance(opened, Path):
        raise ValueError(f"{word} holds statistics, of which no features can be computed.")
    try:
        extract(
            opened,
            load_features(spec, work.dtype),
            folder,
            rule=work.rule,
            batch_size=work.batch_size,
            device=work.device,
            numbers=numbers,
        )
    except ValueError as error:
        failures.put(str(error))
        os._exit(1)
