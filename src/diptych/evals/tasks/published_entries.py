"""Published benchmarks by name: what each needs, and how it is built from what a user gave."""

from pathlib import Path
from typing import Any

from diptych.evals.judges import VisionJudge
from diptych.evals.manifest import content_hash
from diptych.evals.rewards import RewardModel
from diptych.evals.task import Task
from diptych.evals.tasks.doundo_official import DoUndoOfficial, read_annotations
from diptych.evals.tasks.dpg import OFFICIAL_SAMPLES as DPG_SAMPLES
from diptych.evals.tasks.dpg import dpg_task
from diptych.evals.tasks.entries import Builder, Judge, TaskEntry, TaskOptions
from diptych.evals.tasks.gedit import Language, gedit_task
from diptych.evals.tasks.geneval import OFFICIAL_SAMPLES, Detector, file_revision, geneval_task
from diptych.evals.tasks.geneval2 import AtomScores, geneval2_task
from diptych.evals.tasks.gsi_official import SpatialOfficial, read_queries
from diptych.evals.tasks.imgedit import imgedit_task
from diptych.evals.tasks.mjhq import mjhq_task
from diptych.evals.tasks.official_results import DoUndoResults, SpatialResults
from diptych.evals.tasks.preferences import Preference, preference_task
from diptych.evals.tasks.published import first_of_each
from diptych.evals.tasks.rise import rise_task
from diptych.evals.tasks.t2i_compbench import OFFICIAL_SAMPLES as COMPBENCH_SAMPLES
from diptych.evals.tasks.t2i_compbench import CompResults, compbench_task
from diptych.evals.tasks.wise import Scale, wise_task
from diptych.evals.tasks.xtc_official import FactMarks, consistency_official


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
    chosen = first_of_each(read_queries(options.images), lambda query: query.operation, options.num_per_category)
    prompts = content_hash([[query.name, query.prompt] for query in chosen])[:16]
    return SpatialOfficial(
        queries=chosen,
        seed=options.seed,
        source={"dataset": f"{Path(options.images).name}@{prompts}", "num_queries": len(chosen)},
        results=judge if isinstance(judge, SpatialResults) else None,
    )


def _xtc_official(options: TaskOptions, judge: Judge | None) -> Task:
    if not options.images:
        raise ValueError(
            "xtc-official needs its photographs, captions and questions: give --images a bundle of XTC-Bench, such as "
            "gt-1000-coco."
        )
    return consistency_official(
        options.images,
        marks=judge if isinstance(judge, FactMarks) else None,
        number=options.num_per_category,
        seed=options.seed,
    )


PUBLISHED_ENTRIES: dict[str, TaskEntry] = {
    "geneval-official": TaskEntry(
        "GenEval itself: 553 prompts about photographs, four pictures each",
        ("text_to_image",),
        _geneval,
        files="--prompts evaluation_metadata.jsonl; --detections FILE or --detector WHICH to judge",
        has_splits=False,
        pictures=2_212,
        per_prompt=4,
        judge="Mask2Former Swin-S and CLIP ViT-L/14, on a GPU",
    ),
    "dpg-official": TaskEntry(
        "DPG-Bench itself: 1,065 long prompts, four pictures each",
        ("text_to_image",),
        _dpg_official,
        files="--prompts dpg_bench.csv; --judge JUDGE, or --export DIR for the official scorer",
        has_splits=False,
        pictures=4_260,
        per_prompt=4,
        judge="mPLUG-large, on a GPU",
    ),
    "wise": TaskEntry(
        "WISE on the scale of the paper: 1,000 prompts that need knowledge, three marks of 0 to 2",
        ("text_to_image",),
        _wise("legacy"),
        files="--prompts JSON; --judge JUDGE, also what gpt_eval.py wrote, or --export DIR",
        has_splits=False,
        pictures=1_000,
        judge="GPT-4o-2024-05-13, a service",
    ),
    "wise-verified": TaskEntry(
        "WISE_Verified: the same, right or wrong, on verified prompts; another scale",
        ("text_to_image",),
        _wise("verified"),
        files="--prompts JSON; --judge JUDGE, or --export DIR",
        has_splits=False,
        pictures=1_000,
        judge="Qwen3.5-35B-A3B, on several GPUs",
    ),
    "geneval2": TaskEntry(
        "GenEval 2: 800 composed prompts, a probability for each atom (Soft-TIFA)",
        ("text_to_image",),
        _geneval2,
        files="--prompts geneval2_data.jsonl; --judge JUDGE, or --export DIR and --verdicts JSON",
        has_splits=False,
        pictures=800,
        judge="Qwen3-VL-8B-Instruct, on a GPU: 6,012 questions",
    ),
    "t2i-compbench": TaskEntry(
        "T2I-CompBench(++): eight categories of 300 prompts, ten pictures each",
        ("text_to_image",),
        _compbench,
        files="--prompts <category>_val.txt; --judge JUDGE, --detections FILE, or --export DIR and --verdicts DIR",
        has_splits=False,
        pictures=24_000,
        per_prompt=10,
        judge="BLIP-VQA, UniDet and CLIP, on a GPU",
    ),
    "hpsv2": TaskEntry(
        "Human Preference Score v2: 3,200 prompts of four styles, rated by a reward model",
        ("text_to_image",),
        _preferences("hpsv2", "the folder of anime.json, concept-art.json, paintings.json and photo.json"),
        files="--prompts DIR; --judge MODULE:FUNCTION or a file of rewards, or --export DIR",
        has_splits=False,
        pictures=3_200,
        judge="a tuned CLIP ViT-H/14, on a GPU",
    ),
    "hpsv3": TaskEntry(
        "Human Preference Score v3 on any prompts, rated by a reward model",
        ("text_to_image",),
        _preferences("hpsv3", "a text file with a prompt a line, or JSON lines with prompt and category"),
        files="--prompts FILE; --judge MODULE:FUNCTION or a file of rewards, or --export DIR",
        has_splits=False,
        judge="a reward model, on a GPU",
    ),
    "image-reward": TaskEntry(
        "ImageReward on any prompts, rated by a reward model",
        ("text_to_image",),
        _preferences("image-reward", "a text file with a prompt a line, or JSON lines with prompt and category"),
        files="--prompts FILE; --judge MODULE:FUNCTION or a file of rewards, or --export DIR",
        has_splits=False,
        judge="BLIP-large with a head, on a GPU or a CPU",
    ),
    "mjhq": TaskEntry(
        "MJHQ-30K: 30,000 prompts of ten categories, whose FID `diptych fd` measures",
        ("text_to_image",),
        _mjhq,
        files="--prompts meta_data.json, --export DIR",
        has_splits=False,
        pictures=30_000,
        judge="`diptych fd` with Inception-v3",
    ),
    "imgedit": TaskEntry(
        "ImgEdit-Bench, the basic suite: 737 edits of nine types, three marks each",
        ("image_edit",),
        _imgedit,
        files="--prompts basic_edit.json, --images DIR; --judge JUDGE or result.json, or --export DIR",
        has_splits=False,
        pictures=737,
        judge="GPT-4o, a service: 737 questions",
    ),
    "gedit-en": TaskEntry(
        "GEdit-Bench in English: edits that people asked for, sqrt(SC * PQ)",
        ("image_edit",),
        _gedit("en"),
        files="--images DATASET; --judge JUDGE or the folder of *_gpt_score.csv, or --export DIR",
        has_splits=False,
        judge="GPT-4.1 or Qwen2.5-VL-72B: two questions a picture",
    ),
    "gedit-cn": TaskEntry(
        "GEdit-Bench in Chinese",
        ("image_edit",),
        _gedit("cn"),
        files="--images DATASET; --judge JUDGE or the folder of *_gpt_score.csv, or --export DIR",
        has_splits=False,
        judge="GPT-4.1 or Qwen2.5-VL-72B: two questions a picture",
    ),
    "rise": TaskEntry(
        "RISEBench: 360 edits that need reasoning; right in every respect, or not",
        ("image_edit",),
        _rise,
        files="--prompts data_total.json, --images DIR; --judge JUDGE or the script's answers, or --export DIR",
        has_splits=False,
        pictures=360,
        judge="GPT-4.1-2025-04-14, a service: up to three questions a picture",
    ),
    "xtc-official": TaskEntry(
        "XTC-Bench itself: photographs asked about, and drawn from their captions",
        ("image_to_text", "text_to_image"),
        _xtc_official,
        files="--images BUNDLE; --export DIR and --verdicts DIR to judge",
        has_splits=False,
        judge="a segmenter, a scene-graph model and Qwen2.5-VL-32B, on several GPUs",
    ),
    "do-undo-official": TaskEntry(
        "Do-Undo Bench itself: actions in kitchens, done and undone",
        ("image_edit",),
        _doundo_official,
        files="--prompts annotations_test.json, --images FRAMES; --export DIR and --verdicts CSV to judge",
        has_splits=False,
        pictures=1_353,
        judge="DINOv2, CLIP, LaViLA and RAFT, on a GPU",
    ),
    "gsi-official": TaskEntry(
        "GSI-Bench itself: photographs to be changed by told distances",
        ("image_edit",),
        _gsi_official,
        files="--images DATASET; --export DIR and --verdicts DIR to judge",
        has_splits=False,
        judge="DetAny3D, SAM, DINOv2 and Qwen3-VL-235B, on several GPUs",
    ),
}
