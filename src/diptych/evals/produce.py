"""The first phase: everything that the tasks ask for is made, once, and leaves a row and a file.

A sample is made when no row has its key, or when the file of the row is gone or damaged. So a run that was stopped
goes on where it was, and one with other settings shares what is equal.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from diptych.data.example import ImageIn, Part, Text, load_pixels
from diptych.evals.manifest import EvaluationFolder, SampleRow, content_hash, request_parts, sample_key
from diptych.evals.protocol import Contender, Earlier, Failure, Output, Request
from diptych.evals.task import Task

Progress = Callable[[str, int, int], None]
"""``(label of the task, samples there, samples in all)``."""


@dataclass(frozen=True)
class Planned:
    """A request with all its settings, and the key of its sample."""

    request: Request
    key: str

    @property
    def builds_on(self) -> tuple[str, ...]:
        """Ids of the earlier requests whose outputs it needs."""
        return tuple(part.id for part in self.request.parts if isinstance(part, Earlier))


def plan(task: Task, contender: Contender, given: Mapping[str, Any] | None = None) -> list[Planned]:
    """What a task asks of a contender.

    Args:
        given: settings of the user's, by kind of request; they go before those of the task.

    Raises:
        ValueError: an id stands twice, or a request builds on one that does not stand before it.
    """
    identity = contender.identity()
    keys: dict[str, str] = {}
    planned = []
    for request in task.requests():
        if request.id in keys:
            raise ValueError(f"{task.label}: the id {request.id!r} stands twice. Every request needs an id of its own.")
        for part in request.parts:
            if isinstance(part, Earlier) and part.id not in keys:
                raise ValueError(
                    f"{task.label}: request {request.id!r} builds on {part.id!r}, which does not stand before it."
                )
        settings = contender.settings(request.kind, {**request.settings, **(given or {}).get(request.kind, {})})
        keys[request.id] = sample_key(task.name, request, settings, identity, keys)
        planned.append(Planned(replace(request, settings=settings), keys[request.id]))
    return planned


def missing(folder: EvaluationFolder, planned: Sequence[Planned], rows: Mapping[str, SampleRow]) -> list[Planned]:
    """What has no row yet, or no whole file, or was made from an earlier output that has been made again."""
    fresh: dict[str, str | None] = {}
    left = []
    for item in planned:
        row = rows.get(item.key)
        needed = [fresh[name] for name in item.builds_on]
        if row is not None and list(row.inputs) == needed and folder.is_whole(row):
            fresh[item.request.id] = row.sha256
        else:
            fresh[item.request.id] = None
            left.append(item)
    return left


def produce(
    folder: EvaluationFolder,
    task: Task,
    contender: Contender,
    planned: Sequence[Planned],
    *,
    batch_size: int = 64,
    only: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> int:
    """Makes the samples of a task that are missing; how many could not be made.

    Requests of one kind and equal settings go together, the longest with the longest. What others build on comes first.

    Args:
        planned: the result of ``plan``.
        only: ids to be made here, where several processes share the work.
    """
    rows = folder.rows()
    todo = missing(folder, planned, rows)
    chosen = None if only is None else set(only)
    todo = todo if chosen is None else [item for item in todo if item.request.id in chosen]
    total = len(planned) if chosen is None else len(chosen)
    made = {item.request.id: rows[item.key] for item in planned if item.key in rows}
    for item in todo:
        made.pop(item.request.id, None)
    done, failed = total - len(todo), 0
    report = progress or (lambda label, some, all_of_them: None)
    report(task.label, done, total)
    for wave in _waves(todo):
        for batch in batches(wave, batch_size):
            new, failures = _make(folder, task, contender, batch, made)
            folder.add(new)
            folder.add_failures(failures)
            made.update({row.id: row for row in new})
            done, failed = done + len(batch), failed + len(failures)
            report(task.label, done, total)
    return failed


def _waves(todo: Sequence[Planned]) -> Iterator[list[Planned]]:
    """Groups in which no request builds on another of its group or of a later one."""
    depth: dict[str, int] = {}
    for item in todo:
        depth[item.request.id] = 1 + max((depth.get(name, 0) for name in item.builds_on), default=0)
    for level in sorted(set(depth.values())):
        yield [item for item in todo if depth[item.request.id] == level]


def batches(wave: Sequence[Planned], batch_size: int) -> Iterator[list[Planned]]:
    """Batches of one kind and equal settings, by length."""
    groups: dict[str, list[Planned]] = {}
    for item in wave:
        groups.setdefault(content_hash([item.request.kind, dict(item.request.settings)]), []).append(item)
    for group in groups.values():
        ordered = sorted(group, key=lambda item: _length(item.request))
        yield from (ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size))


def _length(request: Request) -> int:
    """About how long a prompt is, in characters; a picture counts as a long sentence."""
    return sum(len(part.text) if isinstance(part, Text) else 200 for part in request.parts)


def _make(
    folder: EvaluationFolder, task: Task, contender: Contender, batch: Sequence[Planned], made: Mapping[str, SampleRow]
) -> tuple[list[SampleRow], list[dict[str, Any]]]:
    """Rows of what came out of one batch, and records of what failed."""
    started = time.perf_counter()
    resolved = [_resolved(folder, item, made) for item in batch]
    asked = [request for request in resolved if isinstance(request, Request)]
    given = iter(_call(contender, asked))
    outputs = [next(given) if isinstance(request, Request) else request for request in resolved]
    seconds = (time.perf_counter() - started) / len(batch)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    fingerprint = content_hash(contender.identity())[:16]
    rows, failures = [], []
    for item, output in zip(batch, outputs, strict=True):
        checked = _checked(item.request, output)
        if isinstance(checked, Failure):
            failures.append(
                {"key": item.key, "task": task.name, "id": item.request.id, "reason": checked.reason, "time": now}
            )
            continue
        rows.append(
            SampleRow(
                key=item.key,
                task=task.name,
                id=item.request.id,
                kind=item.request.kind,
                parts=request_parts(item.request),
                seed=item.request.seed,
                settings=item.request.settings,
                contender=contender.name,
                fingerprint=fingerprint,
                rewriter=item.request.rewriter,
                inputs=[made[name].sha256 for name in item.builds_on],
                seconds=round(seconds, 4),
                time=now,
                **_stored(folder, checked),
            )
        )
    return rows, failures


def _resolved(folder: EvaluationFolder, item: Planned, made: Mapping[str, SampleRow]) -> Request | Failure:
    """The request with earlier outputs of the folder in place of what refers to them."""
    return resolved(
        item.request, lambda name: folder.output(made[name]) if name in made else Failure("it was not made")
    )


def resolved(request: Request, output_of: Callable[[str], Output]) -> Request | Failure:
    """A request with earlier outputs in place of what refers to them, or why it cannot be asked.

    Args:
        output_of: the output of an earlier request by its id.
    """
    parts: list[Part | Earlier] = []
    for part in request.parts:
        if not isinstance(part, Earlier):
            parts.append(part)
            continue
        output = output_of(part.id)
        if isinstance(output, Failure):
            return Failure(f"it builds on {part.id}, and {output.reason}")
        parts.append(Text(output) if isinstance(output, str) else ImageIn(output))  # type: ignore[arg-type]
    return replace(request, parts=tuple(parts))


def _call(contender: Contender, requests: Sequence[Request]) -> Sequence[Output]:
    if not requests:
        return []
    kind = requests[0].kind
    method = {"image": "draw", "text": "write", "log_likelihood": "log_likelihood"}[kind]
    outputs: Sequence[Output] = getattr(contender, method)(requests)
    if len(outputs) != len(requests):
        raise ValueError(
            f"{contender.name}.{method} was given {len(requests)} requests and returned {len(outputs)} outputs."
        )
    return outputs


def _checked(request: Request, output: Output) -> Output:
    """The output, or what is wrong with it."""
    if isinstance(output, Failure):
        return output
    if request.kind == "image":
        if isinstance(output, str | tuple):
            return Failure("it is no picture")
        pixels = load_pixels(output)
        size = request.settings.get("size")
        if size is not None and list(pixels.shape[:2]) != list(size):
            drawn, wanted = ("x".join(map(str, shape)) for shape in (pixels.shape[:2], size))
            return Failure(f"it is {drawn} pixels, {wanted} were asked for")
        return pixels
    if request.kind == "text" and not isinstance(output, str):
        return Failure("it is no text")
    if request.kind == "log_likelihood" and (not isinstance(output, tuple) or len(output) != len(request.choices)):
        return Failure("it has no value for each choice")
    return output


def _stored(folder: EvaluationFolder, output: Output) -> dict[str, Any]:
    """Puts the output where it belongs; the fields of the row that say what it is."""
    if isinstance(output, str):
        # A lone surrogate has no UTF-8; it must not cost the sample.
        text = output.encode("utf-8", "replace").decode("utf-8")
        return {"text": text, "sha256": content_hash(text)}
    if isinstance(output, tuple):
        return {"log_likelihoods": list(output), "sha256": content_hash(list(output))}
    assert not isinstance(output, Failure)
    return {"size": list(output.shape[:2]), "sha256": folder.store_picture(output)}


def chains(planned: Sequence[Planned]) -> list[list[Planned]]:
    """Requests that must be made by one process, because they build on each other."""
    root: dict[str, str] = {}

    def find(name: str) -> str:
        while root[name] != name:
            name = root[name]
        return name

    for item in planned:
        root[item.request.id] = item.request.id
        for name in item.builds_on:
            if name in root:
                root[find(name)] = item.request.id
    groups: dict[str, list[Planned]] = {}
    for item in planned:
        groups.setdefault(find(item.request.id), []).append(item)
    return list(groups.values())


def shares(planned: Sequence[Planned], count: int) -> list[list[str]]:
    """Ids for each of ``count`` processes: chains by length, dealt in turn, so that all have equally much to do."""
    ordered = sorted(chains(planned), key=lambda chain: -sum(_length(item.request) for item in chain))
    dealt: list[list[str]] = [[] for _ in range(count)]
    for index, chain in enumerate(ordered):
        dealt[index % count] += [item.request.id for item in chain]
    return dealt
