"""What judges pictures: ``--detections``, ``--detector``, ``--judge`` and ``--verdicts``."""

import re
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.cli.contenders import ContenderSpec

if TYPE_CHECKING:
    from diptych.evals.judges import VisionJudge
    from diptych.evals.rewards import RewardModel
    from diptych.evals.tasks import Judge

SCENES = "scenes"
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def chosen_judge(arguments: Namespace) -> "Judge | None":
    """What judges the pictures of an official benchmark."""
    given = [name for name in ("detections", "detector", "judge", "verdicts") if getattr(arguments, name)]
    if len(given) > 1:
        raise ValueError(f"give --{given[0]} or --{given[1]}, not both: one of them judges.")
    if arguments.detections:
        from diptych.evals.tasks.detections_file import read_detections

        return read_detections(arguments.detections)
    if arguments.detector:
        return chosen_detector(arguments.detector, arguments.device)
    if arguments.judge:
        return open_judge(arguments.judge, arguments.device, arguments.dtype)
    if arguments.verdicts:
        return open_verdicts(arguments.verdicts)
    return None


def chosen_detector(text: str, device: str) -> "Judge":
    """A YOLOX network from a file, or ``KIND=FOLDER_OR_ID``."""
    import torch

    from diptych.interop.hf_detectors import is_detector_spelling, load_detector
    from diptych.interop.yolox import load_yolox

    if not is_detector_spelling(text):
        return load_yolox(text)
    found = "cuda" if torch.cuda.is_available() else "cpu"
    return load_detector(text, found if device == "auto" else device)


def open_judge(text: str, device: str, dtype: str) -> "VisionJudge | RewardModel":
    """The judge that ``--judge`` names.

    Args:
        text: ``scenes``, ``URL#NAME`` of a server, a model of diptych, ``transformers:NAME``, a file of answers
            (``.jsonl``), or what a scorer wrote: DPG-Bench's ``*_detail.txt``, WISE's ``.jsonl`` with ``prompt_id`` or
            a folder of them, ImgEdit's ``result.json``, RISEBench's answers as JSON, GEdit-Bench's folder of
            ``*_gpt_score.csv``. A reward model is ``MODULE:FUNCTION``, or a ``.jsonl`` with ``reward``.

    Raises:
        FileNotFoundError: there is no such file or model.
        ValueError: a file is wrong, or the model cannot see.
    """
    from diptych.evals.judges import ContenderJudge, read_answers

    if text == SCENES:
        from diptych.evals.scene_judge import SceneJudge

        return SceneJudge()
    path = Path(text)
    if path.is_dir() and any(path.glob("*_gpt_score.csv")):
        from diptych.evals.tasks.gedit import read_gedit_scores

        return read_gedit_scores(path)
    if path.suffix == ".json":
        from diptych.evals.tasks.imgedit import read_imgedit_answers
        from diptych.evals.tasks.rise import read_rise_answers

        is_rise = path.is_file() and '"judge2"' in path.read_text(encoding="utf-8", errors="replace")
        return read_rise_answers(path) if is_rise else read_imgedit_answers(path)
    if path.is_dir() and any(path.glob("*.jsonl")) and not any(path.glob("*.safetensors")):
        from diptych.evals.tasks.wise import read_marks

        return read_marks(path)
    if path.suffix == ".jsonl":
        if _begins_with(path, "reward"):
            from diptych.evals.rewards import read_rewards

            return read_rewards(path)
        if _begins_with(path, "prompt_id"):
            from diptych.evals.tasks.wise import read_marks

            return read_marks(path)
        return read_answers(text)
    if text.endswith("_detail.txt"):
        from diptych.evals.tasks.dpg import read_details

        return read_details(text)
    if text.startswith(("http://", "https://")):
        from diptych.evals.openai_url import OpenAIContender

        return ContenderJudge(OpenAIContender.from_address(text))
    if _FUNCTION.fullmatch(text) and not text.startswith("transformers:") and not path.exists():
        from diptych.evals.rewards import named_function

        return named_function(text)
    return ContenderJudge(ContenderSpec(text, None, device, dtype).model_alone())


def open_verdicts(text: str) -> "Judge":
    """What an official scorer wrote: a CSV of Do-Undo Bench, a JSON file of GenEval 2, a folder of GSI-Bench, of
    XTC-Bench (``*scored_*.jsonl``), or of T2I-CompBench, which has ``vqa_result.json`` somewhere in it.

    Raises:
        FileNotFoundError: there is nothing, or a folder lacks a file.
        ValueError: a file is wrong; the message names line or key.
    """
    from diptych.evals.tasks.geneval2 import read_atom_scores
    from diptych.evals.tasks.official_results import read_results
    from diptych.evals.tasks.t2i_compbench import read_comp_results
    from diptych.evals.tasks.xtc_official import read_fact_marks

    path = Path(text)
    if path.is_dir() and any(path.glob("*scored_*.jsonl")):
        return read_fact_marks(path)
    if path.is_dir() and any(path.rglob("vqa_result.json")):
        return read_comp_results(path)
    if path.is_file() and path.suffix == ".json":
        return read_atom_scores(path)
    return read_results(path)


def _begins_with(path: Path, key: str) -> bool:
    """Whether one of the first two lines has a key: what the file is, where another may come before."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return any(f'"{key}"' in line for line in [file.readline(), file.readline()])
