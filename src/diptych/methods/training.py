"""From a recipe to a running training: what every method that composes a unified model hands to the loop."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diptych.data.example import Example, ImageLike, Text, load_pixels
from diptych.data.feature_cache import FeatureCache, image_key
from diptych.data.shuffle import derive_key
from diptych.data.sources.protocol import BadRecord
from diptych.data.stream import MixtureStream
from diptych.evals.scenes import evaluate_scenes
from diptych.evals.scores_file import write_scores
from diptych.train.parts import matching_parts, parts_of
from diptych.train.recipe import Recipe, Stage
from diptych.train.task import TrainingTask
from diptych.unified import DrawSettings, UnifiedModel

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

CACHE_BATCH = 64
SECONDS_BETWEEN_NEWS = 10


def build_task(recipe: Recipe[Any], run_dir: Path, num_workers: int = 0) -> TrainingTask:
    """The model of a recipe with fresh weights, its data and its callbacks."""
    torch.manual_seed(derive_key(recipe.seed, "initial weights") >> 1)
    model: UnifiedModel = recipe.model.build()
    model.draw_settings = draw_settings(recipe)
    model.card = {"name": recipe.name, "training": {"recipe": recipe.name, "seed": recipe.seed}}
    sources = {name: config.build() for name, config in recipe.data.items()}
    cache = FeatureCache()
    collator = model.collator(cache, getattr(recipe.model, "row_length", None))

    def open_stream(name: str, stage: Stage, rank: int, world_size: int) -> MixtureStream:
        seed = derive_key(recipe.seed, "data", name) >> 1
        return MixtureStream(sources, stage.mix, seed, stage.batch_size, rank, world_size, num_workers)

    def prepare_stage(name: str, stage: Stage) -> None:
        cache.clear()
        trained = matching_parts(stage.trainable, parts_of(model), f"stages.{name}.trainable")
        if getattr(recipe.model, "cache_features", False) and "autoencoder" not in trained and model.encoder is None:
            chosen = {source: sources[source] for source, weight in stage.mix.items() if weight > 0}
            fill_cache(model, cache, chosen, stage, recipe.precision == "bfloat16")

    def evaluate(stage: str) -> Mapping[str, float]:
        if not recipe.evaluation.scorers:
            return {}
        result = evaluate_scenes(
            model, recipe.evaluation.scorers, recipe.evaluation.num_prompts, seed=recipe.evaluation.seed
        )
        write_scores(result.tables, run_dir / "scores.json", {"model": recipe.name, "stage": stage})
        return {table.benchmark: table.overall.value for table in result.tables if table.contender == "model"}

    return TrainingTask(
        model=model,
        objectives=recipe.model.objectives(),
        collate=collator,
        open_stream=open_stream,
        save_model_folder=model.save,
        prepare_stage=prepare_stage,
        sample=lambda stage, step: draw_samples(model, recipe, stage, sources),
        evaluate=evaluate,
    )


def draw_settings(recipe: Recipe[Any]) -> DrawSettings:
    """The recipe's sampling, as the model carries it."""
    sampling = recipe.sampling
    return DrawSettings(
        num_steps=sampling.num_steps,
        guidance_scale=sampling.guidance_scale,
        guidance_interval=sampling.guidance_interval,
        solver=sampling.solver,
        time_shift=sampling.time_shift,
    )


@torch.inference_mode()
def draw_samples(
    model: UnifiedModel, recipe: Recipe[Any], stage: str, sources: "Mapping[str, Source]"
) -> Sequence[tuple[ImageLike, str]]:
    """Pictures for a run's sample grid: drawn from prompts, or decoded from features while those are learnt."""
    model.eval()
    objectives = recipe.stages[stage].objectives
    mix = recipe.stages[stage].mix
    source = sources[max(mix, key=lambda name: mix[name])]
    if "reconstruction" in objectives:
        space: Any = model.autoencoder
        originals = [_first_image(source.example(i, 0)) for i in range(4)]
        images = torch.stack([model.images.prepare(load_pixels(image), True) for image in originals]).to(model.device)
        decoded = space.decode(space.encode(images)).float().cpu()
        pictures: list[tuple[ImageLike, str]] = []
        for original, picture in zip(originals, decoded, strict=True):
            array = ((picture.permute(1, 2, 0).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
            pictures += [(load_pixels(original), "original"), (array, "decoded")]
        return pictures
    prompts = sample_prompts(source)
    return [(image, prompt) for image, prompt in zip(model.generate_image(list(prompts), seed=0), prompts, strict=True)]


def sample_prompts(source: "Source") -> Sequence[str]:
    """The built-in prompts for the built-in world; captions of the source's first examples for other data."""
    from diptych.data.sources.scenes import SceneExamples

    if isinstance(source, SceneExamples):
        return SAMPLE_PROMPTS
    texts = [next((p.text for p in source.example(i, 0).parts if isinstance(p, Text)), "") for i in range(8)]
    return [text for text in texts if text.strip()] or SAMPLE_PROMPTS


def _first_image(example: Example) -> ImageLike:
    return next(part.image for part in example.parts if not isinstance(part, Text) and part.image is not None)


@torch.inference_mode()
def fill_cache(
    model: UnifiedModel, cache: FeatureCache, sources: "Mapping[str, Source]", stage: Stage, use_bfloat16: bool
) -> None:
    """Encodes, once and in a fixed order, every keyed image that the stage will show.

    A source that cannot list its images is walked for as many epochs as the stage draws from it.
    """
    model.eval()
    total = sum(stage.mix.values())
    started = shown = time.perf_counter()
    for name, source in sources.items():
        num_drawn = stage.num_steps * stage.batch_size * stage.mix[name] / total
        num_epochs = min(int(num_drawn / len(source)) + 1, 8)
        keys: list[str] = []
        images: list[Tensor] = []
        for key, image in _keyed_images(source, num_epochs, cache):
            keys.append(key)
            images.append(model.images.prepare(load_pixels(image), True))
            if len(keys) == CACHE_BATCH:
                _encode_into(model, cache, keys, images, use_bfloat16)
                keys, images = [], []
                if time.perf_counter() - shown > SECONDS_BETWEEN_NEWS:
                    shown = time.perf_counter()
                    print(f"encoding images once: {len(cache):,} ({len(cache) / (shown - started):.0f}/s)", flush=True)
        if keys:
            _encode_into(model, cache, keys, images, use_bfloat16)
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


def _encode_into(
    model: UnifiedModel, cache: FeatureCache, keys: list[str], images: list[Tensor], use_bfloat16: bool
) -> None:
    with torch.autocast(model.device.type, torch.bfloat16, enabled=use_bfloat16):
        features = model.encode_outputs(torch.stack(images).to(model.device))
    cache.add(("output", "input"), keys, features)


__all__ = ["build_task", "draw_samples", "draw_settings", "fill_cache", "sample_prompts"]
