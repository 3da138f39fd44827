"""How a cell is scored where its recipe is on real pictures with texts: drawing and naming among others (a proxy, see
`diptych.evals.real_pictures`), and diversity and Fréchet distance, which the built-in world is measured by too."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray
    from torch import Tensor

    from diptych.cli.compare_plan import Scoring
    from diptych.data.example import Example, ImageLike
    from diptych.frechet.features import Features
    from diptych.scenes.scores import ScoreTable
    from diptych.train.recipe import Recipe
    from diptych.unified import UnifiedModel

    Pixels: TypeAlias = NDArray[uint8]

NUM_CANDIDATES = 20
MIN_FOR_DISTANCE = 20
"""Drawings below which no Fréchet distance is computed: two to each of the ten groups of its interval."""


def held_out_pictures(scoring: "Scoring") -> "tuple[list[Example], list[Example]]":
    """The pictures that are drawn and named, ``num_per_category`` of each category at equal distances, and the rest.

    Raises:
        FileNotFoundError, ValueError: no such tars; a picture without the metadata that ``category`` or ``group``
            names; a category with fewer pictures (one of each group) than candidates.
    """
    from diptych.data.sources import WebDatasetSource
    from diptych.evals.scenes_report import evenly

    source = WebDatasetSource(urls=scoring.pictures, task="text_to_image").build()
    categories: dict[str, dict[Any, Example]] = {}
    for index in range(len(source)):
        example = source.example(index, 0)
        group = _named(example, scoring.group, "--group") if scoring.group else index
        categories.setdefault(category_of(example, scoring), {}).setdefault(group, example)
    drawn, others = [], []
    for category, groups in categories.items():
        found = list(groups.values())
        if len(found) < NUM_CANDIDATES:
            raise ValueError(
                f"--pictures: {NUM_CANDIDATES} different pictures of each category are needed, {category!r} has "
                f"{len(found)}. Give more pictures or a coarser --category."
            )
        chosen = evenly(found, max(NUM_CANDIDATES, scoring.num_per_category))
        keys = {example.key for example in chosen}
        drawn += chosen
        others += [example for example in found if example.key not in keys]
    return drawn, others


def category_of(example: "Example", scoring: "Scoring") -> str:
    """What a picture is told apart within."""
    return _named(example, scoring.category, "--category") if scoring.category else "all"


def _named(example: "Example", key: str, option: str) -> str:
    if key not in example.metadata:
        known = ", ".join(sorted(example.metadata)) or "none"
        raise ValueError(f"{option} {key}: picture {example.key!r} has no such metadata; it has {known}.")
    return str(example.metadata[key])


def score_on_pictures(model: "UnifiedModel", recipe: "Recipe[Any]", scoring: "Scoring", folder: Path) -> dict[str, Any]:
    """Naming and drawing among others, the pictures of the grid, diversity and distances: entries of ``cell.json``."""
    examples, others = held_out_pictures(scoring)
    networks = load_networks(scoring.features, model)
    tables = []
    if "image_to_text" in model.capabilities:
        tables += naming_tables(model, examples, scoring, recipe.name)
    record: dict[str, Any] = {}
    if "text_to_image" in model.capabilities:
        drawn = _drawn(model, examples)
        tables += drawing_tables(model, examples, drawn, networks, scoring, recipe.name)
        record = draw_captions_for_grid(model, recipe, scoring, folder, examples, networks)
        real = _at_size(model, _targets(examples)), _at_size(model, _targets(others))
        if min(len(drawn), len(others)) >= MIN_FOR_DISTANCE:
            record["distances"] = picture_distances(drawn, real[1], real[0], networks)
    return {"tables": [table.to_dict() for table in tables], **record}


def naming_tables(
    model: "UnifiedModel", examples: "Sequence[Example]", scoring: "Scoring", contender: str
) -> "list[ScoreTable]":
    """Is the right text the likeliest of 20, as it is and less its likelihood after a white picture?"""
    import numpy as np

    from diptych.data.sources import WebDatasetSource
    from diptych.evals.real_pictures import answer_choices, score_choices

    source = WebDatasetSource(urls=scoring.pictures, task="image_to_text").build()
    by_key = {example.key: example for example in (source.example(index, 0) for index in range(len(source)))}
    asked = [by_key[example.key] for example in examples]
    choices = answer_choices(asked, NUM_CANDIDATES, scoring.seed, lambda example: category_of(example, scoring))
    white = np.full((*model.images.size, 3), 255, dtype=np.uint8)
    return score_choices(model, choices, f"naming among {NUM_CANDIDATES}", white, contender)


def drawing_tables(
    model: "UnifiedModel",
    examples: "Sequence[Example]",
    drawn: "Pixels",
    networks: "Mapping[str, Features]",
    scoring: "Scoring",
    contender: str,
) -> "list[ScoreTable]":
    """Is the drawn picture nearer to the right one than to 19 others, by each representation?"""
    from diptych.evals.real_pictures import score_drawn

    tables = []
    for name, network in networks.items():

        def features(images: "Sequence[ImageLike]", network: "Features" = network) -> "Tensor":
            return feature_rows(network, _at_size(model, images)).cpu()

        tables += score_drawn(
            model,
            examples,
            list(drawn),
            features,
            f"drawing among {NUM_CANDIDATES}, {name}",
            NUM_CANDIDATES,
            scoring.seed,
            lambda example: category_of(example, scoring),
            contender=contender,
        )
    return tables


def draw_captions_for_grid(
    model: "UnifiedModel",
    recipe: "Recipe[Any]",
    scoring: "Scoring",
    folder: Path,
    examples: "Sequence[Example]",
    networks: "Mapping[str, Features]",
) -> dict[str, Any]:
    """Several pictures of captions at equal distances."""
    from diptych.evals.scenes_report import evenly

    chosen = evenly(examples, scoring.num_prompts)
    texts = [example.parts[0].text for example in chosen]  # type: ignore[union-attr]
    return save_grid(model, recipe, scoring.num_noises, texts, folder, networks)


def save_grid(
    model: "UnifiedModel",
    recipe: "Recipe[Any]",
    num_noises: int,
    texts: Sequence[str],
    folder: Path,
    networks: "Mapping[str, Features]",
) -> dict[str, Any]:
    """Draws ``num_noises`` pictures of each text into ``pictures/`` and measures how much those of one text differ.

    Picture k of text i is drawn from the noise of seed ``i * num_noises + k``, the same for every model.
    """
    import numpy as np

    from diptych.data.picture_files import save_png

    images = model.generate_image(list(texts), num_images=num_noises, seed=0)
    for index, image in enumerate(images):
        prompt, noise = divmod(index, num_noises)
        about = {"recipe": recipe.name, "training_seed": recipe.seed, "prompt": texts[prompt], "seed": index}
        save_png(image, folder / "pictures" / f"{prompt:02d}-{noise}.png", about)
    drawn = np.stack([np.asarray(image) for image in images])
    return {
        "prompts": list(texts),
        "num_noises": num_noises,
        "diversity": picture_diversity(drawn, networks, num_noises),
    }


def picture_diversity(images: "Pixels", networks: "Mapping[str, Features]", num_noises: int) -> dict[str, Any]:
    """How much every ``num_noises`` pictures that follow each other differ, by representation."""
    from diptych.evals.diversity import diversity

    found = {}
    for name, network in networks.items():
        rows = feature_rows(network, images).cpu().numpy()
        found[name] = asdict(diversity(rows.reshape(-1, num_noises, rows.shape[1])))
    return found


def picture_distances(
    drawn: "Pixels", reference: "Pixels", validation: "Pixels", networks: "Mapping[str, Features]"
) -> dict[str, dict[str, Any]]:
    """FD of what was drawn from ``reference``, and FDr in units of that of ``validation`` (real too) from it."""
    from diptych.frechet.distance import frechet_distance
    from diptych.frechet.ratio import distance_estimate, fdr, merged, random_groups

    found = {}
    for name, network in networks.items():
        sides = []
        for images in (drawn, reference, validation):
            rows, groups = feature_rows(network, images).cpu(), []
            for group in random_groups(len(rows)):
                groups.append(network.new_moments())
                groups[-1].update(rows[group])
            sides.append(groups)
        estimate = distance_estimate(sides[0], sides[1])
        unit = frechet_distance(merged(sides[2]), merged(sides[1]))
        found[name] = {
            "value": estimate.value,
            "low": min(estimate.low, estimate.value),
            "high": estimate.high,
            "count": len(drawn),
            "normaliser": unit,
            "fdr": fdr(estimate.value, unit) if unit > 0 else None,
            "network": network.network_id,
        }
    return found


def load_networks(names: Sequence[str], model: "UnifiedModel") -> "dict[str, Features]":
    """Networks by the part of their names before ``=``, on the model's device."""
    from diptych.interop.feature_networks import load_features

    return {name.partition("=")[0]: load_features(name).to(model.device) for name in names}


def feature_rows(network: "Features", images: "Pixels") -> "Tensor":
    """Features of ``num height width 3`` pixels, ``num dim``."""
    import torch

    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    device = next(iter(network.parameters()), torch.empty(0)).device
    with torch.no_grad():
        return torch.cat([network(batch.to(device)) for batch in pixels.split(64)])


def _drawn(model: "UnifiedModel", examples: "Sequence[Example]") -> "Pixels":
    import numpy as np

    requests = [list(example.parts[:-1]) for example in examples]
    return np.stack([np.asarray(image) for image in model.generate_image(requests, seed=0)])


def _targets(examples: "Sequence[Example]") -> "list[ImageLike]":
    return [example.parts[-1].image for example in examples]  # type: ignore[union-attr, misc]


def _at_size(model: "UnifiedModel", images: "Sequence[ImageLike]") -> "Pixels":
    """Pictures as the model would be taught them, so that real and drawn ones have one size."""
    import numpy as np

    from diptych.data.example import load_pixels
    from diptych.models.preprocess import to_uint8

    prepared = [model.images.prepare(load_pixels(image), True)[None] for image in images]
    return np.stack([to_uint8(image, value_range=(-1, 1))[0] for image in prepared])
