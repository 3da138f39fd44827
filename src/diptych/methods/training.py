"""From a recipe to a running training: what every method hands to the loop.

A method's model offers ``collator()``, ``save(path)`` and ``card``; its config ``build()`` and ``objectives()``, and
where objectives keep state, ``companion(model, run_dir)``: a `train.task.Companion` with ``objectives()`` and
``scorers()``, whose names are the config's ``companion_scorers``.
Where that model is a unified one, feature caches, sample grids and the benchmarks of the built-in world come with it;
another model brings its own benchmarks by ``scorers()`` of its config.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from diptych.data.example import Example, ImageIn, ImageLike, ImageOut, Part, Text, is_thought, load_pixels
from diptych.data.feature_cache import FeatureCache, image_key
from diptych.data.feature_files import FeatureFiles
from diptych.data.shuffle import derive_key
from diptych.data.sources.protocol import BadRecord
from diptych.data.sources.scenes import SceneExamples
from diptych.data.stream import MixtureStream
from diptych.evals.scenes import SCENE_TASKS, evaluate_scenes
from diptych.evals.scores_file import write_scores
from diptych.models.adapters import has_adapters
from diptych.models.preprocess import to_uint8
from diptych.scenes.scores import ScoreTable
from diptych.train.parts import matching_parts, parts_of
from diptych.train.precision import autocast_dtype
from diptych.train.recipe import Recipe, Stage
from diptych.train.task import TrainingTask
from diptych.unified import DrawSettings, UnifiedModel
from diptych.unified.feature_cache import maker_of

if TYPE_CHECKING:
    from diptych.data.sources.protocol import Source

SAMPLE_PROMPTS = (
    "a red circle",
    "a photo of a blue star",
    "two green squares",
    "three yellow hearts",
    "a red circle above a blue square",
    "an orange triangle left of a purple ring",
    "a pink ring and a green diamond",
    "a brown heart, a yellow star and a blue circle",
)
"""What the sample grids of a run show when its data is the built-in world."""

NUM_SAMPLES = 8

CACHE_BATCH = 64
MAX_CACHE_BYTES = 4e9
"""Features beyond this are not kept."""
SECONDS_BETWEEN_NEWS = 10

Scorer: TypeAlias = Callable[[Any, int, int], list[ScoreTable]]
"""``(model, prompts of each category, seed) -> tables``, those of the contender "model" and the reference rows."""


def build_task(recipe: Recipe[Any], run_dir: Path, num_workers: int = 0) -> TrainingTask:
    """The model of a recipe with fresh weights, its data and its callbacks.

    Raises:
        ValueError: the recipe asks for a score that there is not.
    """
    scorers = scorers_of(recipe.model)
    known = (*scorers, *getattr(recipe.model, "companion_scorers", ()))
    for scorer in recipe.evaluation.scorers:
        if scorer not in known:
            raise ValueError(f"evaluation.scorers: there is no {scorer!r}. Known: {', '.join(known)}.")
    model = fresh_model(recipe)
    _check_adapters(model, recipe)
    objectives = recipe.model.objectives()
    companion = recipe.model.companion(model, run_dir) if hasattr(recipe.model, "companion") else None
    if companion is not None:
        scorers, objectives = {**scorers, **companion.scorers()}, {**objectives, **companion.objectives()}
    model.card = {"name": recipe.name, "training": {"recipe": recipe.name, "seed": recipe.seed}}
    sources = {name: config.build() for name, config in recipe.data.items()}

    def open_stream(name: str, stage: Stage, rank: int, world_size: int) -> MixtureStream:
        seed = derive_key(recipe.seed, "data", name) >> 1
        return MixtureStream(sources, stage.mix, seed, stage.batch_size, rank, world_size, num_workers)

    def evaluate(stage: str) -> Mapping[str, float]:
        if not recipe.evaluation.scorers:
            return {}
        settings = recipe.evaluation
        tables = [
            table for name in settings.scorers for table in scorers[name](model, settings.num_prompts, settings.seed)
        ]
        about = {"model": recipe.name, "stage": stage}
        write_scores(tables, run_dir / "scores.json", about)
        if settings.every_stage:
            write_scores(tables, run_dir / "scores" / f"{stage}.json", about)
        return {table.benchmark: table.overall.value for table in tables if table.contender == "model"}

    task = TrainingTask(
        model=model,
        objectives=objectives,
        collate=model.collator(),
        open_stream=open_stream,
        save_model_folder=model.save,
        evaluate=evaluate,
        companion=companion,
    )
    return _unified_task(task, recipe, sources) if isinstance(model, UnifiedModel) else task


def _check_adapters(model: Any, recipe: Recipe[Any]) -> None:
    """Refuses adapters that no stage trains, before anything is trained."""
    parts = parts_of(model)
    trained = {part for stage in recipe.stages.values() for part in matching_parts(stage.trainable, parts, "trainable")}
    for name, part in parts.items():
        if has_adapters(part) and name not in trained:
            raise ValueError(
                f"model.lora puts adapters on the {name}, but no stage trains it. Name it in a stage's trainable (such "
                f"as --stages.{next(iter(recipe.stages))}.trainable), or take it out of lora.parts."
            )


def fresh_model(recipe: Recipe[Any]) -> Any:
    """The model as a run of the recipe begins."""
    torch.manual_seed(derive_key(recipe.seed, "initial weights") >> 1)
    return recipe.model.build()


def _unified_task(task: TrainingTask, recipe: Recipe[Any], sources: "Mapping[str, Source]") -> TrainingTask:
    """The task with what a unified model has beyond: packed rows, a feature cache, and pictures of what it learns."""
    model: Any = task.model
    model.draw_settings = draw_settings(recipe)
    cache = FeatureCache()

    def prepare_stage(name: str, stage: Stage) -> None:
        cache.clear()
        trained = matching_parts(stage.trainable, parts_of(model), f"stages.{name}.trainable")
        folder = getattr(recipe.model, "feature_cache", None)
        if folder is not None and "autoencoder" not in trained:
            spaces = ("output", "input") if model.encoder is None else ("output",)
            refuses = recipe.model.feature_cache_missing == "refuse"
            cache.attach(FeatureFiles(folder, maker_of(model)), spaces, refuses)
        elif getattr(recipe.model, "cache_features", False) and "autoencoder" not in trained and model.encoder is None:
            chosen = {source: sources[source] for source, weight in stage.mix.items() if weight > 0}
            fill_cache(model, cache, chosen, stage, autocast_dtype(recipe.precision, model.device) == torch.bfloat16)

    collate = model.collator(cache, getattr(recipe.model, "row_length", None))
    return replace(
        task,
        collate=recipe.model.collate(collate) if hasattr(recipe.model, "collate") else collate,
        prepare_stage=prepare_stage,
        sample=lambda stage, step: draw_samples(model, recipe, stage, sources),
    )


def scorers_of(model_config: Any) -> Mapping[str, Scorer]:
    """The benchmarks that a run of a method may be scored on, by the names ``evaluation.scorers`` takes."""
    if hasattr(model_config, "scorers"):
        own: Mapping[str, Scorer] = model_config.scorers()
        return own
    return {name: partial(_score_scenes, name) for name in SCENE_TASKS}


def _score_scenes(benchmark: str, model: UnifiedModel, num_prompts: int, seed: int) -> list[ScoreTable]:
    return list(evaluate_scenes(model, (benchmark,), num_prompts, seed=seed).tables)


def draw_settings(recipe: Recipe[Any]) -> DrawSettings:
    """The recipe's sampling, as the model carries it."""
    return DrawSettings(**asdict(recipe.sampling))


@torch.inference_mode()
def draw_samples(
    model: UnifiedModel, recipe: Recipe[Any], stage: str, sources: "Mapping[str, Source]"
) -> Sequence[tuple[ImageLike, str]]:
    """Pictures for a run's sample grid, of what the stage learns: decoded from features, drawn, or answered about."""
    model.eval()
    objectives = recipe.stages[stage].objectives
    weights = recipe.stages[stage].mix
    by_weight = [sources[name] for name in sorted(weights, key=lambda name: -weights[name])]
    if "reconstruction" in objectives:
        return _decoded_samples(model, some_examples(by_weight[0], 4))
    for source in by_weight:
        examples = some_examples(source, NUM_SAMPLES)
        if set(objectives) == {"text"} and (shown := [e for e in examples if isinstance(e.parts[0], ImageIn)]):
            return _answered_samples(model, shown)
        if set(objectives) != {"text"} and (drawn := [e for e in examples if isinstance(e.parts[-1], ImageOut)]):
            return _drawn_samples(model, SAMPLE_PROMPTS if isinstance(source, SceneExamples) else drawn)
    return []


def some_examples(source: "Source", count: int) -> list[Example]:
    """Sound examples from all over a source (of a remote one, its first shard), the same ones every time."""
    end = getattr(source, "shard_sizes", [len(source)])[0]
    examples: list[Example] = []
    for place in dict.fromkeys(number * end // count for number in range(count)):
        for index in range(place, min(place + 3, end)):  # past broken records
            with suppress(BadRecord):
                examples.append(source.example(index, 0))
                break
    return examples


def _decoded_samples(model: UnifiedModel, examples: Sequence[Example]) -> list[tuple[ImageLike, str]]:
    """Pictures beside what the generation space makes of their features."""
    pictures: list[tuple[ImageLike, str]] = []
    for original in map(_first_image, examples):
        image = model.images.prepare(load_pixels(original), True)[None].to(model.device)
        decoded = model.autoencoder.decode(model.encode_outputs(image)).float().clamp(-1, 1)
        pictures += [(load_pixels(original), "original"), (to_uint8(decoded, value_range=(-1, 1))[0], "decoded")]
    return pictures


def _drawn_samples(model: UnifiedModel, requests: Sequence[str | Example]) -> list[tuple[ImageLike, str]]:
    """Pictures drawn from prompts, or from all of an example but the picture it ends in; thoughts are the model's."""
    prompts: list[list[Part]] = [
        [part for part in r.parts[:-1] if not is_thought(part)] if isinstance(r, Example) else [Text(r)]
        for r in requests
    ]
    captions = [" ".join(part.text for part in prompt if isinstance(part, Text)) for prompt in prompts]
    return list(zip(model.generate_image(prompts, seed=0), captions, strict=True))


def _answered_samples(model: UnifiedModel, examples: Sequence[Example]) -> list[tuple[ImageLike, str]]:
    """Pictures with what is asked about them and what the model answers."""
    prompts = [[part for part in example.parts if not part.is_target] for example in examples]
    asked = [" ".join(part.text for part in prompt if isinstance(part, Text)) for prompt in prompts]
    answers = model.generate_text(prompts, max_new_tokens=24)
    images = [load_pixels(_first_image(example)) for example in examples]
    return [(image, f"{ask} — {answer}") for image, ask, answer in zip(images, asked, answers, strict=True)]


def _first_image(example: Example) -> ImageLike:
    return next(part.image for part in example.parts if not isinstance(part, Text) and part.image is not None)


@torch.inference_mode()
def fill_cache(
    model: UnifiedModel,
    cache: FeatureCache,
    sources: "Mapping[str, Source]",
    stage: Stage,
    use_bfloat16: bool,
    max_bytes: float = MAX_CACHE_BYTES,
) -> None:
    """Encodes, once and in a fixed order, every keyed image that the stage will show, until ``max_bytes`` are full.

    A source that cannot list its images is walked for as many epochs as the stage draws from it; one of which the stage
    draws less than a quarter is left out.
    """
    model.eval()
    total = sum(stage.mix.values())
    started = shown = time.perf_counter()
    for name, source in sources.items():
        num_drawn = stage.num_steps * stage.batch_size * stage.mix[name] / total
        if num_drawn < len(source) / 4:
            continue  # few images would be met again
        num_epochs = min(int(num_drawn / len(source)) + 1, 8)
        pending: dict[torch.Size, dict[str, Tensor]] = defaultdict(dict)  # images of one size by key
        for key, image in _keyed_images(source, num_epochs, cache):
            if cache.num_bytes >= max_bytes:
                print(f"features fill {max_bytes / 1e9:.1f} GB: the other images are encoded in every step", flush=True)
                return
            prepared = model.images.prepare(load_pixels(image), True)
            group = pending[prepared.shape]
            group[key] = prepared
            if len(group) == CACHE_BATCH:
                _encode_into(model, cache, pending.pop(prepared.shape), use_bfloat16)
                if time.perf_counter() - shown > SECONDS_BETWEEN_NEWS:
                    shown = time.perf_counter()
                    print(f"encoding images once: {len(cache):,} ({len(cache) / (shown - started):.0f}/s)", flush=True)
        for group in pending.values():
            _encode_into(model, cache, group, use_bfloat16)
    seconds = time.perf_counter() - started
    print(f"encoded {len(cache):,} images once in {seconds:.0f} s ({cache.num_bytes / 1e6:.0f} MB)", flush=True)


def _keyed_images(source: "Source", num_epochs: int, cache: FeatureCache) -> Iterator[tuple[str, ImageLike]]:
    """Images with a key, each once: what the source lists itself, or what its examples show."""
    met: set[str] = set()
    listed = getattr(source, "images", None)
    for image in listed() if listed is not None else _shown_images(source, num_epochs):
        key = image_key(image)
        if key is not None and key not in met and cache.get("output", key) is None:
            met.add(key)
            yield key, image


def _shown_images(source: "Source", num_epochs: int) -> Iterator[ImageLike]:
    for epoch in range(num_epochs):
        for index in range(len(source)):
            try:
                parts = source.example(index, epoch).parts
            except BadRecord:
                continue  # the stream counts and names it
            yield from (part.image for part in parts if not isinstance(part, Text) and part.image is not None)


def _encode_into(model: UnifiedModel, cache: FeatureCache, images: Mapping[str, Tensor], use_bfloat16: bool) -> None:
    """Adds the features of images of one size, given by key."""
    with torch.autocast(model.device.type, torch.bfloat16, enabled=use_bfloat16):
        features = model.encode_outputs(torch.stack(list(images.values())).to(model.device))
    cache.add(("output", "input"), images, features)


__all__ = ["build_task", "draw_samples", "draw_settings", "fill_cache", "some_examples"]
