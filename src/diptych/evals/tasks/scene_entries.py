"""Benchmarks of the built-in world by name: exact rules, no files, splits that were held out of training."""

from diptych.evals.judges import VisionJudge
from diptych.evals.tasks.doundo import DoUndo
from diptych.evals.tasks.dpg import OFFICIAL_SAMPLES as DPG_SAMPLES
from diptych.evals.tasks.dpg_scenes import dense_scenes
from diptych.evals.tasks.entries import TaskEntry
from diptych.evals.tasks.geneval import twin_task
from diptych.evals.tasks.gsi import SpatialCompliance
from diptych.evals.tasks.scenes import Editing, MultiReference, Questions
from diptych.evals.tasks.xtc import SAMPLES, CrossTaskConsistency

SCENE_ENTRIES: dict[str, TaskEntry] = {
    "geneval": TaskEntry(
        "the twin of GenEval: draw prompts of six categories, judged by the rules of GenEval",
        ("text_to_image",),
        lambda options, _: twin_task(**options.scene_items(), samples=options.samples or 1),
        pictures=360,
    ),
    "questions": TaskEntry(
        "answer questions about pictures",
        ("image_to_text",),
        lambda options, _: Questions(**options.scene_items()),
        answers=420,
    ),
    "editing": TaskEntry(
        "change pictures as told, and nothing else",
        ("image_edit",),
        lambda options, _: Editing(**options.scene_items()),
        pictures=420,
    ),
    "multi-reference": TaskEntry(
        "compose pictures from several references",
        ("image_edit",),
        lambda options, _: MultiReference(**options.scene_items()),
        pictures=240,
    ),
    "xtc": TaskEntry(
        "cross-task consistency: does the model draw what it would answer?",
        ("image_to_text", "text_to_image"),
        lambda options, _: CrossTaskConsistency(**options.scene_items(), samples=options.samples or SAMPLES),
        pictures=240,
        answers=480,
        per_prompt=4,
    ),
    "dpg": TaskEntry(
        "the twin of DPG-Bench: draw captions that tell all, judged by questions that depend on each other",
        ("text_to_image",),
        lambda options, judge: dense_scenes(
            **options.scene_items(),
            samples=options.samples or DPG_SAMPLES,
            examiner=judge if isinstance(judge, VisionJudge) else None,
        ),
        pictures=240,
        per_prompt=4,
    ),
    "do-undo": TaskEntry(
        "do an edit, then take it back from the picture that came out",
        ("image_edit",),
        lambda options, _: DoUndo(**options.scene_items(), rounds=options.rounds),
        pictures=1_080,
    ),
    "gsi": TaskEntry(
        "spatial edits told in numbers: move, place, scale and remove by so many per cent",
        ("image_edit",),
        lambda options, _: SpatialCompliance(**options.scene_items()),
        pictures=300,
    ),
}
