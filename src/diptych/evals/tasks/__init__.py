"""Benchmarks of the harness by name; one file each.

A package of one's own adds to them with ``register_task`` when it is imported (``diptych --import PACKAGE``).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from diptych.evals.judges import VisionJudge
from diptych.evals.manifest import content_hash
from diptych.evals.rewards import RewardModel
from diptych.evals.task import Task
from diptych.evals.tasks.doundo import DoUndo
from diptych.evals.tasks.doundo_official import DoUndoOfficial, read_annotations
from diptych.evals.tasks.dpg import OFFICIAL_SAMPLES as DPG_SAMPLES
from diptych.evals.tasks.dpg import dpg_task
from diptych.evals.tasks.dpg_scenes import dense_scenes
from diptych.evals.tasks.gedit import Language, gedit_task
from diptych.evals.tasks.geneval import OFFICIAL_SAMPLES, Detector, file_revision, geneval_task, twin_task
from diptych.evals.tasks.geneval2 import AtomScores, geneval2_task
from diptych.evals.tasks.gsi import SpatialCompliance
from diptych.evals.tasks.gsi_official import SpatialOfficial, read_queries
from diptych.evals.tasks.imgedit import imgedit_task
from diptych.evals.tasks.mjhq import mjhq_task
from diptych.evals.tasks.official_results import DoUndoResults, SpatialResults
from diptych.evals.tasks.preferences import Preference, preference_task
from diptych.evals.tasks.rise import rise_task
from diptych.evals.tasks.scenes import Editing, MultiReference, Questions
from diptych.evals.tasks.t2i_compbench import OFFICIAL_SAMPLES as COMPBENCH_SAMPLES
from diptych.evals.tasks.t2i_compbench import CompResults, compbench_task
from diptych.evals.tasks.wise import Scale, wise_task
from diptych.evals.tasks.xtc import SAMPLES, CrossTaskConsistency
from diptych.scenes.split import Split

NUM_PER_CATEGORY = 60


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What a user may say about the samples of a task; JSON-able by ``to_dict``."""

    split: Split = "test"
    num_per_category: int | None = None
    """Items of each category; without it 60 of the built-in world, and all of a published benchmark."""
    samples: int | None = None
    """Pictures of each prompt; without it as the benchmark has it."""
    rounds: int = 1
    """How often in a row an edit is done and undone."""
    seed: int = 0
    image_size: tuple[int, int] = (64, 64)
    """(height, width) of the pictures that are shown."""
    mark: str = ""
    """What stands behind the benchmark's name: `` (novel)``."""
    prompts: str = ""
    """File of prompts, where the benchmark has one."""
    rewritten: str = ""
    """The same prompts in other words."""
    images: str = ""
    """Folder of pictures, where the benchmark has one."""
    include_path: str = ""
    """Folder of further tasks of lmms-eval."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "TaskOptions":
        height, width = content["image_size"]
        return cls(**{**content, "image_size": (int(height), int(width))})

    def scene_items(self) -> dict[str, Any]:
        """The arguments of a task of the built-in world."""
        return {
            "split": self.split,
            "num_per_category": self.num_per_category or NUM_PER_CATEGORY,
            "seed": self.seed,
            "image_size": self.image_size,
            "mark": self.mark,
        }


Judge: TypeAlias = Detector | VisionJudge | RewardModel | DoUndoResults | SpatialResults | AtomScores | CompResults
"""What judges a published benchmark: a detector, what answers questions or rates, or an official scorer's results."""

Builder = Callable[[TaskOptions, Judge | None], Task]


@dataclass(frozen=True)
class TaskEntry:
    """What is known of a benchmark before it is built."""

    summary: str
    needs: tuple[str, ...]
    """Capabilities."""
    build: Builder
    files: str = ""
    """What it needs beside the model."""
    has_splits: bool = True
    """Whether it is of the built-in world, with its splits."""


def _geneval(options: TaskOptions, judge: Judge | None) -> Task:
    if not options.prompts:
        raise ValueError(
            "geneval-official needs its prompts: give --prompts evaluation_metadata.jsonl, from GenEval's repository."
        )
    return geneval_task(
        options.prompts,
        rewritten=options.rewritten or None,
        detector=judge if isinstance(judge, Detector) else None,
        num_per_category=options.num_per_category,
        samples=options.samples or OFFICIAL_SAMPLES,
        seed=options.seed,
    )


def _dpg_official(options: TaskOptions, judge: Judge | None) -> Task:
    if not options.prompts:
        raise ValueError(
            "dpg-official needs its prompts and questions: give --prompts dpg_bench.csv, from ELLA's repository."
        )
    return dpg_task(
        options.prompts,
        rewritten=options.rewritten or None,
        examiner=judge if isinstance(judge, VisionJudge) else None,
        number=options.num_per_category,
        samples=options.samples or DPG_SAMPLES,
        seed=options.seed,
    )


def _wise(scale: Scale) -> Builder:
    def build(options: TaskOptions, judge: Judge | None) -> Task:
        if not options.prompts:
            raise ValueError(
                "wise needs its prompts: give --prompts a JSON file with Prompt, Explanation and prompt_id, or the "
                "folder data of WISE's repository."
            )
        return wise_task(
            options.prompts,
            scale,
            examiner=judge if isinstance(judge, VisionJudge) else None,
            num_per_category=options.num_per_category,
            seed=options.seed,
        )

    return build


def _geneval2(options: TaskOptions, judge: Judge | None) -> Task:
    if not options.prompts:
        raise ValueError("geneval2 needs its prompts: give --prompts geneval2_data.jsonl, from GenEval 2's repository.")
    return geneval2_task(
        options.prompts,
        examiner=judge if isinstance(judge, VisionJudge | AtomScores) else None,
        num_per_category=options.num_per_category,
        seed=options.seed,
    )


def _compbench(options: TaskOptions, judge: Judge | None) -> Task:
    if not options.prompts:
        raise ValueError(
            "t2i-compbench needs its prompts: give --prompts a <category>_val.txt, or the folder of them, from "
            "T2I-CompBench's repository."
        )
    return compbench_task(
        options.prompts,
        examiner=judge if isinstance(judge, VisionJudge | Detector | CompResults) else None,
        num_per_category=options.num_per_category,
        samples=options.samples or COMPBENCH_SAMPLES,
        seed=options.seed,
    )


def _preferences(name: Preference, prompts: str) -> Builder:
    def build(options: TaskOptions, judge: Judge | None) -> Task:
        if not options.prompts:
            raise ValueError(f"{name} needs its prompts: give --prompts {prompts}.")
        return preference_task(
            name,
            options.prompts,
            examiner=judge if isinstance(judge, RewardModel) else None,
            num_per_category=options.num_per_category,
            seed=options.seed,
        )

    return build


def _mjhq(options: TaskOptions, judge: Judge | None) -> Task:
    if not options.prompts:
        raise ValueError("mjhq needs its prompts: give --prompts meta_data.json of MJHQ-30K.")
    return mjhq_task(options.prompts, num_per_category=options.num_per_category, seed=options.seed)


def _imgedit(options: TaskOptions, judge: Judge | None) -> Task:
    if not options.prompts or not options.images:
        raise ValueError(
            "imgedit needs its edits and pictures: give --prompts basic_edit.json or the folder Benchmark/Basic of "
            "ImgEdit's repository, and --images the original pictures."
        )
    return imgedit_task(options.prompts, options.images, **_of_edits(options, judge))


def _rise(options: TaskOptions, judge: Judge | None) -> Task:
    if not options.prompts or not options.images:
        raise ValueError(
            "rise needs its edits and pictures: give --prompts data_total.json and --images the folder data, both of "
            "RISEBench."
        )
    return rise_task(options.prompts, options.images, **_of_edits(options, judge))


def _gedit(language: Language) -> Builder:
    def build(options: TaskOptions, judge: Judge | None) -> Task:
        if not options.images:
            raise ValueError(f"gedit-{language} needs its data set: give --images a folder of GEdit-Bench's parquets.")
        return gedit_task(options.images, language, **_of_edits(options, judge))

    return build


def _of_edits(options: TaskOptions, judge: Judge | None) -> dict[str, Any]:
    """What all benchmarks of judged edits take."""
    return {
        "examiner": judge if isinstance(judge, VisionJudge) else None,
        "num_per_category": options.num_per_category,
        "seed": options.seed,
    }


def _doundo_official(options: TaskOptions, judge: Judge | None) -> Task:
    if not options.prompts or not options.images:
        raise ValueError(
            "do-undo-official needs its annotations and frames: give --prompts annotations_test.json, from Do-Undo "
            "Bench's data set, and --images the folder of EPIC-KITCHENS frames."
        )
    rows = read_annotations(options.prompts)[: options.num_per_category]
    return DoUndoOfficial(
        rows=rows,
        images=options.images,
        seed=options.seed,
        source={"prompts": file_revision(options.prompts), "num_rows": len(rows)},
        results=judge if isinstance(judge, DoUndoResults) else None,
    )


def _gsi_official(options: TaskOptions, judge: Judge | None) -> Task:
    if not options.images:
        raise ValueError(
            "gsi-official needs its pictures and instructions: give --images fine_dataset (or another of GSI-Bench's)."
        )
    queries, chosen = read_queries(options.images), []
    seen: dict[str, int] = {}
    for query in queries:
        seen[query.operation] = seen.get(query.operation, 0) + 1
        if options.num_per_category is None or seen[query.operation] <= options.num_per_category:
            chosen.append(query)
    prompts = content_hash([[query.name, query.prompt] for query in chosen])[:16]
    return SpatialOfficial(
        queries=tuple(chosen),
        seed=options.seed,
        source={"dataset": f"{Path(options.images).name}@{prompts}", "num_queries": len(chosen)},
        results=judge if isinstance(judge, SpatialResults) else None,
    )


TASKS: dict[str, TaskEntry] = {
    "geneval": TaskEntry(
        "the twin of GenEval: draw prompts of six categories, judged by the rules of GenEval",
        ("text_to_image",),
        lambda options, _: twin_task(**options.scene_items(), samples=options.samples or 1),
    ),
    "questions": TaskEntry(
        "answer questions about pictures",
        ("image_to_text",),
        lambda options, _: Questions(**options.scene_items()),
    ),
    "editing": TaskEntry(
        "change pictures as told, and nothing else",
        ("image_edit",),
        lambda options, _: Editing(**options.scene_items()),
    ),
    "multi-reference": TaskEntry(
        "compose pictures from several references",
        ("image_edit",),
        lambda options, _: MultiReference(**options.scene_items()),
    ),
    "xtc": TaskEntry(
        "cross-task consistency: does the model draw what it would answer?",
        ("image_to_text", "text_to_image"),
        lambda options, _: CrossTaskConsistency(**options.scene_items(), samples=options.samples or SAMPLES),
    ),
    "dpg": TaskEntry(
        "the twin of DPG-Bench: draw captions that tell all, judged by questions that depend on each other",
        ("text_to_image",),
        lambda options, judge: dense_scenes(
            **options.scene_items(),
            samples=options.samples or DPG_SAMPLES,
            examiner=judge if isinstance(judge, VisionJudge) else None,
        ),
    ),
    "do-undo": TaskEntry(
        "do an edit, then take it back from the picture that came out",
        ("image_edit",),
        lambda options, _: DoUndo(**options.scene_items(), rounds=options.rounds),
    ),
    "gsi": TaskEntry(
        "spatial edits told in numbers: move, place, scale and remove by so many per cent",
        ("image_edit",),
        lambda options, _: SpatialCompliance(**options.scene_items()),
    ),
    "geneval-official": TaskEntry(
        "GenEval itself: 553 prompts about photographs, four pictures each",
        ("text_to_image",),
        _geneval,
        files="--prompts evaluation_metadata.jsonl; --detections FILE or --detector WHICH to judge",
        has_splits=False,
    ),
    "dpg-official": TaskEntry(
        "DPG-Bench itself: 1,065 long prompts, four pictures each",
        ("text_to_image",),
        _dpg_official,
        files="--prompts dpg_bench.csv; --judge JUDGE, or --export DIR for the official scorer",
        has_splits=False,
    ),
    "wise": TaskEntry(
        "WISE on the scale of the paper: 1,000 prompts that need knowledge, three marks of 0 to 2",
        ("text_to_image",),
        _wise("legacy"),
        files="--prompts JSON; --judge JUDGE, also what gpt_eval.py wrote, or --export DIR",
        has_splits=False,
    ),
    "wise-verified": TaskEntry(
        "WISE_Verified: the same, right or wrong, on verified prompts; another scale",
        ("text_to_image",),
        _wise("verified"),
        files="--prompts JSON; --judge JUDGE, or --export DIR",
        has_splits=False,
    ),
    "geneval2": TaskEntry(
        "GenEval 2: 800 composed prompts, a probability for each atom (Soft-TIFA)",
        ("text_to_image",),
        _geneval2,
        files="--prompts geneval2_data.jsonl; --judge JUDGE, or --export DIR and --verdicts JSON",
        has_splits=False,
    ),
    "t2i-compbench": TaskEntry(
        "T2I-CompBench(++): eight categories of 300 prompts, ten pictures each",
        ("text_to_image",),
        _compbench,
        files="--prompts <category>_val.txt; --judge JUDGE, --detections FILE, or --export DIR and --verdicts DIR",
        has_splits=False,
    ),
    "hpsv2": TaskEntry(
        "Human Preference Score v2: 3,200 prompts of four styles, rated by a reward model",
        ("text_to_image",),
        _preferences("hpsv2", "the folder of anime.json, concept-art.json, paintings.json and photo.json"),
        files="--prompts DIR; --judge MODULE:FUNCTION or a file of rewards, or --export DIR",
        has_splits=False,
    ),
    "hpsv3": TaskEntry(
        "Human Preference Score v3 on any prompts, rated by a reward model",
        ("text_to_image",),
        _preferences("hpsv3", "a text file with a prompt a line, or JSON lines with prompt and category"),
        files="--prompts FILE; --judge MODULE:FUNCTION or a file of rewards, or --export DIR",
        has_splits=False,
    ),
    "image-reward": TaskEntry(
        "ImageReward on any prompts, rated by a reward model",
        ("text_to_image",),
        _preferences("image-reward", "a text file with a prompt a line, or JSON lines with prompt and category"),
        files="--prompts FILE; --judge MODULE:FUNCTION or a file of rewards, or --export DIR",
        has_splits=False,
    ),
    "mjhq": TaskEntry(
        "MJHQ-30K: 30,000 prompts of ten categories, whose FID `diptych fd` measures",
        ("text_to_image",),
        _mjhq,
        files="--prompts meta_data.json, --export DIR",
        has_splits=False,
    ),
    "imgedit": TaskEntry(
        "ImgEdit-Bench, the basic suite: 737 edits of nine types, three marks each",
        ("image_edit",),
        _imgedit,
        files="--prompts basic_edit.json, --images DIR; --judge JUDGE or result.json, or --export DIR",
        has_splits=False,
    ),
    "gedit-en": TaskEntry(
        "GEdit-Bench in English: edits that people asked for, sqrt(SC * PQ)",
        ("image_edit",),
        _gedit("en"),
        files="--images DATASET; --judge JUDGE or the folder of *_gpt_score.csv, or --export DIR",
        has_splits=False,
    ),
    "gedit-cn": TaskEntry(
        "GEdit-Bench in Chinese",
        ("image_edit",),
        _gedit("cn"),
        files="--images DATASET; --judge JUDGE or the folder of *_gpt_score.csv, or --export DIR",
        has_splits=False,
    ),
    "rise": TaskEntry(
        "RISEBench: 360 edits that need reasoning; right in every respect, or not",
        ("image_edit",),
        _rise,
        files="--prompts data_total.json, --images DIR; --judge JUDGE or the script's answers, or --export DIR",
        has_splits=False,
    ),
    "do-undo-official": TaskEntry(
        "Do-Undo Bench itself: actions in kitchens, done and undone",
        ("image_edit",),
        _doundo_official,
        files="--prompts annotations_test.json, --images FRAMES; --export DIR and --verdicts CSV to judge",
        has_splits=False,
    ),
    "gsi-official": TaskEntry(
        "GSI-Bench itself: photographs to be changed by told distances",
        ("image_edit",),
        _gsi_official,
        files="--images DATASET; --export DIR and --verdicts DIR to judge",
        has_splits=False,
    ),
}
"""By the name that ``--on`` takes."""

SCENE_TASKS = ("geneval", "questions", "editing", "multi-reference")
"""What ``--on scenes`` means."""


def register_task(name: str, entry: TaskEntry) -> None:
    """Adds a benchmark.

    Raises:
        ValueError: the name is taken.
    """
    if name in TASKS:
        raise ValueError(f"there is a benchmark {name!r} already. Choose another name.")
    TASKS[name] = entry


def build_task(name: str, options: TaskOptions, judge: Judge | None = None) -> Task:
    """
    Args:
        judge: judges the pictures of a published benchmark, if it is of its kind; not needed to draw them.

    Raises:
        ValueError: no such benchmark, or one of its files is wrong.
    """
    return task_entry(name).build(options, judge)


def task_entry(name: str) -> TaskEntry:
    """What is known of a benchmark; ``lmms:TASK`` is one of lmms-eval.

    Raises:
        ValueError: no such benchmark.
    """
    if name.startswith("lmms:"):
        return TaskEntry("a task of lmms-eval", ("image_to_text",), _of_lmms(name), has_splits=False)
    if name not in TASKS:
        raise ValueError(f"there is no benchmark {name!r}. Known: {', '.join(TASKS)}.")
    return TASKS[name]


def _of_lmms(name: str) -> Builder:
    from diptych.evals.lmms.imported import PREFIX, LmmsTask

    return lambda options, _: LmmsTask(
        task=name.removeprefix(PREFIX), include_path=options.include_path, number=options.num_per_category
    )
