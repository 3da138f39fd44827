"""FD-loss (arXiv 2604.28190): a generator is post-trained until what it draws in one step has the statistics of real
images, in the feature spaces of frozen networks.

    x = decode(noise + v(noise, t = 0 | prompt))                       one step, with gradient
    F_i = phi_i(x);   (mean, covariance)_i of a population that F_i is the newest part of
    L = sum_i w_i FD((mean, covariance)_i, real_i) / (sg[FD_i] + c)

A multi-step model becomes a one-step model by being read as one (section "Post-training"): a velocity, or data, that it
predicts from pure noise is followed to the end. No image is compared with another; real images enter once, as moments.
The distance, its gradient and the populations are `diptych.frechet`'s.

Beyond the paper: the window of the population may grow during training, since a long one diverges while the generator
still moves fast; and ``joint_width`` takes the distance of image features *together with* a vector of the prompt, so
that what is asked for is kept too, not only how all images look.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diptych.data.batch import Batch, ImageGroup
from diptych.data.sources.scenes import ScenesSource
from diptych.frechet.distance import frechet_distance
from diptych.frechet.estimators import BatchOnly, MovingAverage, PopulationEstimator, Queue
from diptych.frechet.features import Features
from diptych.frechet.gather import gather_features
from diptych.frechet.gradient import FrechetReference
from diptych.frechet.loss import FDLoss, Representation
from diptych.frechet.moments import Moments
from diptych.frechet.preprocessing import Outside
from diptych.frechet.ratio import NUM_GROUPS, STUDENT_95, distance_estimate, fdr_k, random_groups
from diptych.frechet.warm_route import WarmRoute
from diptych.objectives.loss_term import LossTerm, Objective
from diptych.objectives.randomness import normal_from_seeds
from diptych.scenes.scores import Score, ScoreTable
from diptych.train.checks import check_whole_batches
from diptych.train.recipe import Stage
from diptych.unified import UnifiedModel
from diptych.unified.prompt_vectors import BATCH_SIZE, PromptVectors, prompt_batch

_MEASURED = 512
"""Images or captions of which the scale of features and prompt vectors is taken."""


@dataclass(frozen=True, kw_only=True)
class MovingAverageConfig:
    """Moments decay by a factor at every step (the paper's default, with 0.999)."""

    decay: float = 0.9
    """beta; the window is ``batch / (1 - decay)`` images. From a base that is far away begin with 0.9."""
    final_decay: float | None = None
    """Decay at the end of the stage, with windows that grow geometrically; None keeps the first."""

    def build(self, dim: int, num_steps: int) -> PopulationEstimator:
        last = self.decay if self.final_decay is None else self.final_decay

        def decay(step: int) -> float:
            return 1 - _between(1 - self.decay, 1 - last, step, num_steps)

        return MovingAverage(dim, self.decay if self.final_decay is None else decay)


@dataclass(frozen=True, kw_only=True)
class QueueConfig:
    """The newest images, in a ring buffer."""

    size: int = 1024
    """Images."""
    final_size: int | None = None
    """Images at the end of the stage, growing geometrically; None keeps the first."""

    def build(self, dim: int, num_steps: int) -> PopulationEstimator:
        last = self.size if self.final_size is None else self.final_size

        def size(step: int) -> int:
            return round(_between(self.size, last, step, num_steps))

        return Queue(dim, self.size if self.final_size is None else size)


@dataclass(frozen=True, kw_only=True)
class BatchOnlyConfig:
    """The batch alone: what the paper shows to make good generators worse."""

    def build(self, dim: int, num_steps: int) -> PopulationEstimator:
        return BatchOnly()


def _between(first: float | int, last: float | int, step: int, num_steps: int) -> float:
    """Geometric, from the first at step 0 to the last at ``num_steps - 1``."""
    share = min(step / max(num_steps - 1, 1), 1.0)
    return float(first * (last / first) ** share)


@dataclass(frozen=True, kw_only=True)
class FDLossConfig:
    """Post-training of a model that draws; ``build()`` loads that model."""

    start_from: str = "diptych-scenes"
    """The model: a bundled one's name, a model folder, a checkpoint or a run."""
    representations: dict[str, Any] = field(default_factory=dict)
    """Feature networks of the loss by name: configs whose ``build()`` gives ``frechet.features.Features``."""
    held_out: dict[str, Any] = field(default_factory=dict)
    """Networks whose distances are reported only. A low distance in a trained space alone is not quality."""
    weights: dict[str, float] = field(default_factory=dict)
    """w of a representation; 1 where it is not named."""
    population: MovingAverageConfig | QueueConfig | BatchOnlyConfig = field(default_factory=MovingAverageConfig)
    """Whom a batch stands for."""
    constant: float = 0.01
    """c."""
    gradient_tolerance: float | None = None
    """Relative error up to which a gradient may come by following the last one (``frechet.warm_route``), which takes a
    fraction of the time where networks are wide; None asks for an eigendecomposition every step."""
    reference: Any = field(default_factory=lambda: ScenesSource(task="text_to_image", caption_style="short"))
    """Real images with their captions: a source config of the task ``text_to_image``."""
    num_reference: int = 20_000
    """Images from the start of ``reference`` that the real moments are taken of; those after them are validation."""
    num_validation: int = 0
    """Images after those, whose distance from them divides a representation's distance for ever (its FDr then, which
    gives no space more weight as it comes near); 0 is the paper's division by the distance itself."""
    num_warm_start: int = 4096
    """Images that the untrained generator draws for the first population; 10 for each feature or more."""
    joint_width: int = 0
    """Width of the prompt's vector in a joint distance of images and prompts; 0 is the paper's distance of images."""
    joint_weight: float = 1.0
    """Standard deviation of the prompt's vector relative to that of the image's features, over all of each."""
    checkpoint_activations: bool = False
    """Compute decoder and networks anew in the backward pass: for networks that fill the memory."""

    companion_scorers: ClassVar[tuple[str, ...]] = ("fdr",)
    """What ``evaluation.scorers`` may name beside the benchmarks of every unified model."""

    def __post_init__(self) -> None:
        if self.gradient_tolerance is not None and self.gradient_tolerance <= 0:
            raise ValueError(f"model.gradient_tolerance must be positive or none, got {self.gradient_tolerance}.")
        if not self.representations:
            raise ValueError("model.representations is empty: name at least one feature network.")
        both = sorted(set(self.representations) & set(self.held_out))
        if both:
            raise ValueError(f"model.held_out names {', '.join(both)}, which is trained. Keep each in one of the two.")
        unknown = sorted(set(self.weights) - set(self.representations))
        if unknown:
            raise ValueError(
                f"model.weights names {', '.join(unknown)}; the representations are {', '.join(self.representations)}."
            )
        for name, least in (("num_reference", 2), ("num_warm_start", 2), ("joint_width", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"model.{name} must be at least {least}, got {getattr(self, name)}.")
        if self.num_validation != 0 and self.num_validation < 2:
            raise ValueError(f"model.num_validation must be 0 or at least 2, got {self.num_validation}.")

    def build(self) -> UnifiedModel:
        """The model to be post-trained.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it does not draw.
        """
        from diptych.unified.folder import load_model

        model = load_model(self.start_from, "cpu", torch.float32)
        if model.image_head is None:
            raise ValueError(f"model.start_from: {self.start_from} does not draw images, so there is no distance.")
        return model

    def companion(self, model: UnifiedModel, run_dir: Path) -> "FDPostTraining":
        """The objective ``fd``, with what it keeps between steps."""
        return FDPostTraining(self, model, run_dir)

    def objectives(self) -> dict[str, Objective]:
        """None without state; see ``companion``."""
        return {}


class FDPostTraining:
    """The loss of one run: networks, real moments (kept in ``run/fd``), and the population."""

    def __init__(self, config: FDLossConfig, model: UnifiedModel, run_dir: Path) -> None:
        self.config = config
        self.model = model
        self.folder = run_dir / "fd"
        self.trained: dict[str, Features] = {name: one.build() for name, one in config.representations.items()}
        self.networks = self.trained | {name: one.build() for name, one in config.held_out.items()}
        self.source = config.reference.build()
        self.num_measured = min(_MEASURED, config.num_reference)
        self.prompt_vectors = (
            PromptVectors(model, config.joint_width, self.source, self.num_measured) if config.joint_width else None
        )
        self.loss: FDLoss | None = None
        self._distances: dict[str, Tensor] = {}
        self._spreads: dict[str, float] = {}

    def objectives(self) -> dict[str, Objective]:
        return {"fd": self.objective}

    def objective(self, model: UnifiedModel, batch: Batch, generator: torch.Generator) -> dict[str, LossTerm]:
        """``fd``: about the sum of the weights for ever; the distances of ``metrics`` tell the progress.

        Raises:
            ValueError: the batch draws no image, or features are not finite (rows named).
        """
        if not batch.outputs:
            raise ValueError("fd: the batch draws no image. Use data of the task text_to_image.")
        images = one_step_images(model, batch, self.config.checkpoint_activations)
        result = self._loss()(self._rows(batch, images, list(self.trained), self.prompt_vectors))
        self._distances = result.distances
        return {"fd": LossTerm(result.loss, torch.ones_like(result.loss))}

    def _loss(self) -> FDLoss:
        if self.loss is None:
            raise ValueError("FDPostTraining.begin_stage comes before its first loss.")
        return self.loss

    # -- what is kept from step to step ------------------------------------------------------------------------------

    def begin_stage(self, name: str, stage: Stage, is_new: bool) -> None:
        """Real moments, computed once a run, and the population of the generator as it is.

        Raises:
            ValueError: the stage accumulates gradients, of which each would see a population of its own.
        """
        check_whole_batches(name, stage)
        self.model.eval()
        references = {key: self.reference(key, self.prompt_vectors) for key in self.trained}
        self.loss = FDLoss(
            {
                key: Representation(
                    reference=FrechetReference.of(moments, self.model.device),
                    estimator=self.config.population.build(moments.dim, stage.num_steps),
                    weight=self.config.weights.get(key, 1.0),
                    validation_distance=self._validation_distance(key, moments),
                    route=WarmRoute.within(self.config.gradient_tolerance),
                )
                for key, moments in references.items()
            },
            constant=self.config.constant,
            gather=gather_features,
        )
        if is_new:
            indices = range(self.config.num_warm_start)
            draw = partial(one_step_images, self.model)
            self.loss.warm_start(self._collected(indices, draw, list(self.trained), self.prompt_vectors))

    def after_step(self) -> None:
        self._loss().commit()

    def metrics(self) -> dict[str, float]:
        """``fd/NAME``: the distances of the last step's populations; and of routes that follow their gradients."""
        routes = self._loss().route_metrics() if self.loss else {}
        return {f"fd/{name}": distance.item() for name, distance in self._distances.items()} | routes

    def state_dict(self) -> dict[str, Tensor]:
        return self._loss().tensors()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._loss().load_tensors(state)

    # -- features ----------------------------------------------------------------------------------------------------

    def reference(self, name: str, prompt_vectors: PromptVectors | None = None) -> Moments:
        """Moments of the real images in one space; read again where a file of this run has them."""
        return self._real_moments(name, range(self.config.num_reference), prompt_vectors)

    def _validation_distance(self, name: str, reference: Moments) -> float | None:
        """Of the images after the reference's, from these; None where a distance is divided by itself."""
        start, num = self.config.num_reference, self.config.num_validation
        if not num:
            return None
        fresh = self._real_moments(name, range(start, start + num), self.prompt_vectors, "-validation")
        return frechet_distance(fresh, reference)

    def _real_moments(
        self, name: str, indices: range, prompt_vectors: PromptVectors | None, suffix: str = ""
    ) -> Moments:
        network = self.networks[name]
        joint = "" if prompt_vectors is None else f"+{prompt_vectors.name}"
        path = self.folder / f"{name}{'-joint' if joint else ''}{suffix}.npz"
        if path.is_file():
            saved = Moments.load(path)
            known = (saved.network, saved.preprocessing, saved.count)
            if known == (network.network_id, network.fingerprint + joint, len(indices)):
                return saved
        rows = self.real_features(indices, [name], prompt_vectors)[name]
        moments = Moments(rows.shape[1], network=network.network_id, preprocessing=network.fingerprint + joint)
        moments.update(rows.cpu())
        self.folder.mkdir(parents=True, exist_ok=True)
        moments.save(path)
        return moments

    def real_features(
        self, indices: Sequence[int], names: Sequence[str], prompt_vectors: PromptVectors | None = None
    ) -> dict[str, Float[Tensor, "images dim"]]:
        """Features of real images of the reference."""
        return self._collected(indices, lambda batch: [group.images for group in batch.outputs], names, prompt_vectors)

    @torch.no_grad()
    def _collected(
        self,
        indices: Sequence[int],
        images_of: Callable[[Batch], Sequence[Any]],
        names: Sequence[str],
        prompt_vectors: PromptVectors | None = None,
        is_saved: bool = False,
    ) -> dict[str, Tensor]:
        """Rows of many examples. Every process computes them all: scores are asked for in one process only."""
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        for start in range(0, len(indices), BATCH_SIZE):
            batch = prompt_batch(self.model, self.source, indices[start : start + BATCH_SIZE])
            for name, rows in self._rows(batch, images_of(batch), names, prompt_vectors, is_saved).items():
                found[name].append(rows)
        return {name: torch.cat(rows) for name, rows in found.items()}

    def _rows(
        self,
        batch: Batch,
        images: Sequence[Tensor],
        names: Sequence[str],
        prompt_vectors: PromptVectors | None,
        is_saved: bool = False,
    ) -> dict[str, Tensor]:
        """Features of a batch's images in the order of its groups, with the vectors of its prompts where they count.

        Args:
            is_saved: as the images would be in files, of 8 bits. Without it they may leave [-1, 1], where a clamp would
                end their gradient.
        """
        outside: Outside = "clamp" if is_saved else "keep"
        vectors = None if prompt_vectors is None else prompt_vectors(batch)
        found = {}
        for name in names:
            network = self.networks[name].to(self.model.device)
            extract = partial(network, value_range=(-1, 1), outside=outside, quantize=is_saved)
            if self.config.checkpoint_activations and torch.is_grad_enabled():
                extract = partial(checkpoint, extract, use_reentrant=False)
            rows = torch.cat([extract(group) for group in images])
            found[name] = rows if vectors is None else torch.cat((rows, self._spread(name) * vectors), dim=1)
        return found

    def _spread(self, name: str) -> float:
        """What brings prompt vectors to the total variance of a space's real features."""
        if name not in self._spreads:
            rows = self.real_features(range(self.num_measured), [name])[name]
            total = rows.double().var(0).sum().item()
            self._spreads[name] = self.config.joint_weight * (total / self.config.joint_width) ** 0.5
        return self._spreads[name]

    # -- scores ------------------------------------------------------------------------------------------------------

    def scorers(self) -> dict[str, Callable[[Any, int, int], list[ScoreTable]]]:
        """What ``evaluation.scorers`` may name beside the benchmarks of the model itself."""
        return {"fdr": self.score}

    def score(self, model: UnifiedModel, num_images: int, seed: int) -> list[ScoreTable]:
        """FDr in every space, trained and held out: of this model in one step, of the model it started from in one step
        and in its own number, and of real images (1 by definition)."""
        base = self.config.build().to(self.model.device).eval()
        makers: dict[str, Callable[[Batch], Sequence[Tensor]]] = {
            "model": partial(one_step_images, model),
            "before, 1 step": partial(one_step_images, base),
            f"before, {base.draw_settings.num_steps} steps": partial(drawn_images, base),
        }
        return self.tables(makers, num_images)

    @torch.no_grad()
    def tables(self, makers: Mapping[str, Callable[[Batch], Sequence[Tensor]]], num_images: int) -> list[ScoreTable]:
        """FDr in every space of whatever draws what a batch asks for, by name.

        Prompts are fresh ones of the reference, images are of 8 bits, as if saved.
        """
        names = list(self.networks)
        indices = range(self.config.num_reference, self.config.num_reference + num_images)
        references = {name: self.reference(name) for name in names}
        real = self.real_features(indices, names)
        units = {name: frechet_distance(_moments(rows), references[name]) for name, rows in real.items()}
        found = []
        for contender, draw in makers.items():
            rows = self._collected(indices, draw, names, is_saved=True)
            found.append(self._table(contender, rows, references, units))
        return found

    def _table(
        self, contender: str, rows: Mapping[str, Tensor], references: Mapping[str, Moments], units: Mapping[str, float]
    ) -> ScoreTable:
        categories, distances, variance = {}, {}, 0.0
        for name, features in rows.items():
            groups = [_moments(features[group]) for group in random_groups(len(features))]
            found = distance_estimate(groups, [references[name]])
            unit = units[name]
            categories[name] = Score(found.value / unit, found.low / unit, found.high / unit, len(features), NUM_GROUPS)
            distances[name] = found.value
            variance += (found.standard_error / unit) ** 2
        mean = fdr_k({name: score.value for name, score in categories.items()})
        half = STUDENT_95 * variance**0.5 / len(categories)
        overall = Score(mean, max(0.0, mean - half), mean + half, len(features), NUM_GROUPS)
        details = {"distances": distances, "units": dict(units), "trained": list(self.trained)}
        return ScoreTable("fdr", contender, overall, categories, details)


def _moments(rows: Tensor) -> Moments:
    moments = Moments(rows.shape[1])
    moments.update(rows.cpu())
    return moments


def one_step_images(
    model: UnifiedModel, batch: Batch, checkpoint_activations: bool = False
) -> list[Float[Tensor, "images 3 height width"]]:
    """What the batch asks for, drawn in one step without guidance, not clipped; a tensor for each group of one size.

    As ``generate_image`` draws with one step and a guidance scale of 1, before clipping and with gradients. The noise
    follows from the examples' seeds.
    """
    decode = model.autoencoder.decode_unclipped
    if checkpoint_activations and torch.is_grad_enabled():
        decode = partial(checkpoint, decode, use_reentrant=False)
    images = []
    for condition, mask, noise in _conditions(model, batch):
        start = torch.zeros(len(noise), device=noise.device)
        encoded = model.image_head.denoiser.encode_condition(condition, mask)
        latents = noise + model.image_head.velocity(noise, start, encoded)
        images.append(decode(latents.to(condition.dtype)))
    return images


def drawn_images(model: UnifiedModel, batch: Batch) -> list[Float[Tensor, "images 3 height width"]]:
    """What the batch asks for, drawn as the model is set to draw, clipped; the noise is that of `one_step_images`."""
    images = []
    for condition, mask, noise in _conditions(model, batch):
        null = model.image_head.null_condition(len(noise))
        latents = model.image_head.draw(condition, null, noise, model.draw_settings, mask=mask)
        images.append(model.autoencoder.decode(latents.to(condition.dtype)))
    return images


def _conditions(model: UnifiedModel, batch: Batch) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """What the images of each group are drawn from: conditions, their mask, and noise by the examples' seeds."""
    output = model.forward_for_drawing(batch)
    for group in batch.outputs:
        seeds = batch.example_seeds[group.example_ids]
        noise = normal_from_seeds(seeds, _latent_shape(model, group), "noise")
        yield *model.condition_rows(output, group), noise


def _latent_shape(model: UnifiedModel, group: ImageGroup) -> Sequence[int]:
    if group.images is None:
        assert group.features is not None
        return group.features.shape[1:]
    shape: Sequence[int] = model.autoencoder.latent_shape(*group.images.shape[-2:])
    return shape
