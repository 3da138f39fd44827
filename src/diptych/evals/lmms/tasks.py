"""Tasks of this harness as tasks of lmms-eval: a folder for its ``--include_path``, with the same judge and table.

For tasks that ask for words alone. The folder holds the documents (parquet), the YAML file, and ``utils.py`` with the
functions that it names, which are those below.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diptych.data.example import ImageIn, Text, load_pixels
from diptych.evals.protocol import Request
from diptych.evals.task import Task

OPTIONS_FILE = "options.json"
_UTILS = '''"""The functions that the YAML file names."""

from pathlib import Path

from diptych.evals.lmms import tasks

FOLDER = str(Path(__file__).parent)


def doc_to_visual(doc):
    return tasks.doc_to_visual(doc)


def doc_to_text(doc):
    return doc["question"]


def process_results(doc, results):
    return {"score": {"id": doc["id"], "answer": results[0]}}


def overall(results):
    return tasks.overall(FOLDER, results)
'''
_YAML = """task: {name}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {documents}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_target: id
generation_kwargs:
  max_new_tokens: {max_new_tokens}
  temperature: 0
  do_sample: false
process_results: !function utils.process_results
metric_list:
  - metric: score
    aggregation: !function utils.overall
    higher_is_better: true
metadata:
  - version: {version}
"""


def write_lmms_task(task: Task, options: Mapping[str, Any], folder: str | Path) -> str:
    """Writes a task; what lmms-eval knows it by.

    Args:
        options: of ``TaskOptions.to_dict``, by which the task can be built again.
        folder: for ``--include_path``.

    Raises:
        ValueError: the task asks for more than words.
    """
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise ValueError(
            "--lmms-tasks writes parquet files, which takes pyarrow: pip install 'diptych[data]'."
        ) from None
    requests = task.requests()
    other = next((one for one in requests if one.kind != "text" or not _is_question(one)), None)
    if other is not None:
        raise ValueError(f"--lmms-tasks: {task.name} asks for more than answers about pictures, such as {other.id}.")
    name = f"diptych_{task.name.replace('-', '_')}"
    place = Path(folder).resolve() / name
    place.mkdir(parents=True, exist_ok=True)
    documents = place / "documents.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([_document(one) for one in requests]), documents)
    length = max(int(one.settings.get("max_new_tokens", 256)) for one in requests)
    (place / f"{name}.yaml").write_text(
        _YAML.format(name=name, documents=json.dumps(str(documents)), max_new_tokens=length, version=task.version),
        encoding="utf-8",
    )
    (place / "utils.py").write_text(_UTILS, encoding="utf-8")
    (place / OPTIONS_FILE).write_text(json.dumps({"task": task.name, "options": dict(options)}), encoding="utf-8")
    return name


def _is_question(request: Request) -> bool:
    return all(isinstance(part, ImageIn | Text) for part in request.parts)


def _document(request: Request) -> dict[str, Any]:
    pictures, words = [], []
    for part in request.parts:
        if isinstance(part, ImageIn):
            buffer = BytesIO()
            Image.fromarray(load_pixels(part.image)).save(buffer, "PNG")
            pictures.append(buffer.getvalue())
        elif isinstance(part, Text):
            words.append(part.text)
    return {"id": request.id, "question": "\n".join(words), "pictures": pictures}


def doc_to_visual(doc: Mapping[str, Any]) -> list[Image.Image]:
    return [Image.open(BytesIO(stored)).convert("RGB") for stored in doc["pictures"]]


@lru_cache(maxsize=4)
def _task(folder: str) -> Task:
    from diptych.evals.tasks import TaskOptions, build_task

    stored = json.loads((Path(folder) / OPTIONS_FILE).read_text(encoding="utf-8"))
    return build_task(stored["task"], TaskOptions.from_dict(stored["options"]))


def overall(folder: str, results: Sequence[Mapping[str, str]]) -> float:
    """The task's own overall score of some answers; documents that were not asked (``--limit``) are left out."""
    task = _task(folder)
    asked = {request.id: request for request in task.requests()}
    requests = [asked[result["id"]] for result in results]
    verdicts = task.judge(requests, [result["answer"] for result in results])
    named: dict[str, Any] = {request.id: verdict for request, verdict in zip(requests, verdicts, strict=True)}
    return float(task.table(named, "model").overall.value)


def as_pictures(visuals: Any) -> list[Any]:
    """What ``doc_to_visual`` of a task of lmms-eval gave, as uint8 RGB pictures.

    Raises:
        ValueError: it is no picture.
    """
    found = []
    for visual in visuals if isinstance(visuals, list) else [visuals]:
        if visual is None:
            continue
        if not isinstance(visual, Image.Image):
            raise ValueError(f"only pictures can be shown, got {type(visual).__name__}.")
        found.append(np.asarray(visual.convert("RGB")))
    return found
