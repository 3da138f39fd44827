"""What ``--judge`` takes: a model, a server, the reader of the built-in world, or a file of answers."""

from pathlib import Path
from typing import TYPE_CHECKING

from diptych.cli.contenders import ContenderSpec

if TYPE_CHECKING:
    from diptych.evals.judges import VisionJudge

SCENES = "scenes"


def open_judge(text: str, device: str, dtype: str) -> "VisionJudge":
    """
    Args:
        text: ``scenes``, ``URL#NAME`` of a server, a model of diptych, a file of answers (``.jsonl``), or what
            DPG-Bench's scorer wrote (``*_detail.txt``).

    Raises:
        FileNotFoundError: there is no such file or model.
        ValueError: a file is wrong, or the model cannot see.
    """
    from diptych.evals.judges import ContenderJudge, read_answers

    if text == SCENES:
        from diptych.evals.scene_judge import SceneJudge

        return SceneJudge()
    if Path(text).suffix == ".jsonl":
        return read_answers(text)
    if text.endswith("_detail.txt"):
        from diptych.evals.tasks.dpg import read_details

        return read_details(text)
    if text.startswith(("http://", "https://")):
        from diptych.evals.openai_url import OpenAIContender

        return ContenderJudge(OpenAIContender.from_address(text))
    return ContenderJudge(ContenderSpec(text, None, device, dtype).model_alone())
