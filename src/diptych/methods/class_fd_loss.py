"""FD-loss (arXiv 2604.28190) for the generators of the paper's tables: class-conditional, or of captions; one step.

    x = decode(x_theta(z, y)),   z ~ N(0, s^2 I),   y ~ classes        one call of the denoiser, with gradient

JiT, which draws in many steps, is read at pure noise as a prediction of the image (section "Post-training"); pMF and
iMF draw in one step anyway, at a fixed guidance scale and interval, which are inputs of theirs. Stable Diffusion 3.5
(`diptych.interop.sd3`) is read like JiT, of captions. Loss and populations are `diptych.frechet`'s, as for unified
models (`diptych.methods.fd_loss`); real images enter as files of moments alone.

Differs from the paper's code: classes come shuffled and equally often instead of each at random; noise follows from the
examples' seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.data.example import Example
from diptych.data.shuffle import derive_key
from diptych.data.sources.class_labels import ClassLabels
from diptych.flow.path import to_data
from diptych.frechet.features import Features
from diptych.frechet.gather import gather_features
from diptych.frechet.gradient import FrechetReference
from diptych.frechet.loss import FDLoss, Representation
from diptych.frechet.moments import Moments
from diptych.frechet.warm_route import WarmRoute
from diptych.models.denoisers.jit import JiT
from diptych.models.denoisers.pmf import MeanFlowCondition, MiT
from diptych.objectives.loss_term import LossTerm, Objective
from diptych.objectives.randomness import normal_from_seeds
from diptych.train.checks import check_whole_batches
from diptych.train.recipe import Buildable, Stage
from diptych.unified.folder import load_part, read_manifest, resolve, save_parts

KIND = "class_generator"

_BATCH = 64
"""Images at a time where no gradient is kept."""


@dataclass(frozen=True)
class ClassBatch:
    """Which classes to draw, and the seeds of their noise."""

    labels: Int[Tensor, " batch"]
    example_seeds: Int[Tensor, " batch"]

    def to(self, device: torch.device | str) -> "ClassBatch":
        return ClassBatch(self.labels.to(device, non_blocking=True), self.example_seeds.to(device, non_blocking=True))


def collate_classes(examples: Sequence[Example], seeds: Sequence[int]) -> ClassBatch:
    """Examples of ``data.sources.class_labels`` as a batch.

    Raises:
        ValueError: an example has no class.
    """
    for example in examples:
        if "label" not in example.metadata:
            raise ValueError(f"example {example.key!r} names no class. Use diptych.data.sources.class_labels.")
    labels = torch.tensor([int(example.metadata["label"]) for example in examples])
    return ClassBatch(labels, torch.tensor(list(seeds), dtype=torch.int64))


@runtime_checkable
class OneStepGenerator(Protocol):
    """What is post-trained: a module that draws a batch in one step, with gradient."""

    @property
    def device(self) -> torch.device: ...

    def collator(self) -> Callable[[Sequence[Example], Sequence[int]], Any]:
        """What makes batches of examples and their seeds."""

    def checkpoint_activations(self) -> None:
        """Saves memory in the backward pass, from now on."""

    def __call__(self, batch: Any) -> Float[Tensor, "batch 3 height width"]:
        """Images about in [-1, 1]."""


class ClassGenerator(nn.Module):
    """A denoiser that draws classes in one step, in pixels or in the latents of a frozen autoencoder.

    Attributes:
        card: what the model folder says about it.
    """

    denoiser: JiT | MiT
    autoencoder: Any

    def __init__(
        self,
        *,
        denoiser: JiT | MiT,
        autoencoder: nn.Module | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        card: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            autoencoder: generation space of the denoiser's images; None where those are pixels.
            guidance_scale: what a MeanFlow network is told; 1 is off.
            guidance_interval: times t between which its guidance acts.

        Raises:
            ValueError: guidance for a network that is not told any: one step of it is drawn without.
        """
        super().__init__()
        if guidance_scale != 1 and not isinstance(denoiser, MiT):
            raise ValueError(
                f"model.guidance_scale must be 1 for {type(denoiser).__name__}, which takes no guidance as input, "
                f"got {guidance_scale}."
            )
        self.denoiser = denoiser
        self.autoencoder = autoencoder
        self.guidance_scale = guidance_scale
        self.guidance_interval = guidance_interval
        self.card = dict(card or {})
        self._recomputes = False

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def collator(self) -> Callable[[Sequence[Example], Sequence[int]], ClassBatch]:
        """What makes batches for ``forward``."""
        return collate_classes

    def checkpoint_activations(self) -> None:
        """Computes the decoder anew in the backward pass, from now on."""
        self._recomputes = True

    def forward(self, batch: ClassBatch) -> Float[Tensor, "batch 3 height width"]:
        """One image of each class, drawn in one step and not clipped: about in [-1, 1]."""
        side = self.denoiser.image_size
        noise = normal_from_seeds(batch.example_seeds, (self.denoiser.channels, side, side), "noise")
        noise = self.denoiser.noise_scale * noise
        start = torch.zeros(len(noise), device=noise.device)
        if isinstance(self.denoiser, MiT):
            condition = MeanFlowCondition.of(batch.labels, self.guidance_scale, self.guidance_interval)
            output = self.denoiser(noise, start, condition)
        else:
            output = self.denoiser(noise, start, batch.labels)
        data = to_data(output, self.denoiser.prediction, noise, start)
        if self.autoencoder is None:
            return data
        decode = self.autoencoder.decode_unclipped
        if self._recomputes and torch.is_grad_enabled():
            decode = partial(checkpoint, decode, use_reentrant=False)
        images: Tensor = decode(data)
        return images

    def save(self, path: str | Path) -> None:
        """Writes the model folder: whole or not at all."""
        draw = {"guidance_scale": self.guidance_scale, "guidance_interval": list(self.guidance_interval)}
        fields = {"capabilities": ["class_to_image"], "draw": draw, "card": self.card}
        save_parts(Path(path), KIND, dict(self.named_children()), None, fields)


def load_class_generator(path: str | Path, device: torch.device | str = "cpu") -> ClassGenerator:
    """The generator in a model folder, a checkpoint, or the latest checkpoint of a run.

    Raises:
        FileNotFoundError: there is none, or a file is missing.
        ValueError: it is a model of another kind, or damaged.
    """
    folder = resolve(path)
    manifest = read_manifest(folder)
    if manifest.get("kind") != KIND:
        raise ValueError(f"{folder} holds no class-conditional generator. Load it with diptych.load.")
    draw = manifest["draw"]
    model = ClassGenerator(
        **{name: load_part(folder, name) for name in manifest["parts"]},  # type: ignore[arg-type]
        guidance_scale=draw["guidance_scale"],
        guidance_interval=tuple(draw["guidance_interval"]),
        card=manifest["card"],
    )
    return model.to(device).eval()


@dataclass(frozen=True, kw_only=True)
class ClassFDLossConfig:
    """Post-training of a generator of classes or captions."""

    generator: Buildable
    """Config whose ``build()`` gives a `JiT` or `MiT`, such as ``interop.jit:JiTCheckpoint``, or a whole
    `OneStepGenerator`, such as ``interop.sd3:SD3Pipeline``."""
    prompts: Buildable | None = None
    """Source of the captions that the first population is drawn by; None draws the classes of a `JiT` or `MiT`."""
    autoencoder: Buildable | None = None
    """Config of the generation space of a latent generator; None for pixels."""
    guidance_scale: float = 1.0
    """What a MeanFlow network is told; 1 is off, and all that JiT takes."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Times t (0 is noise, 1 is data) between which that guidance acts."""
    representations: dict[str, Any] = field(default_factory=dict)
    """Feature networks of the loss by name: configs whose ``build()`` gives ``frechet.features.Features``."""
    references: dict[str, str] = field(default_factory=dict)
    """Files of real moments by the same names: ``diptych fd --stats`` writes them, and those of FD-loss are read."""
    weights: dict[str, float] = field(default_factory=dict)
    """w of a representation; 1 where it is not named."""
    validation_distances: dict[str, float] = field(default_factory=dict)
    """Distances of fresh real images from ``references``, which divide a representation's distance for ever (its FDr
    then); ``diptych fd VALIDATION REFERENCE`` finds them. One that is not named is divided by itself, as in the paper.
    """
    population: Any
    """Whom a batch stands for: a config of ``methods.fd_loss``, whose ``build(dim, num_steps)`` gives an estimator."""
    constant: float = 0.01
    """c."""
    gradient_tolerance: float | None = None
    """Relative error up to which a gradient may come by following the last one (``frechet.warm_route``), which takes a
    fraction of the time where networks are wide; None asks for an eigendecomposition every step."""
    num_warm_start: int = 50_000
    """Images that the untrained generator draws for the first population; 10 for each feature or more."""
    checkpoint_activations: bool = False
    """Compute decoder and networks anew in the backward pass: for networks that fill the memory."""

    companion_scorers: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.gradient_tolerance is not None and self.gradient_tolerance <= 0:
            raise ValueError(f"model.gradient_tolerance must be positive or none, got {self.gradient_tolerance}.")
        if not self.representations:
            raise ValueError("model.representations is empty: name at least one feature network.")
        if set(self.references) != set(self.representations):
            raise ValueError(
                f"model.references must have a file for each of {', '.join(self.representations)}, "
                f"got {', '.join(self.references) or 'none'}."
            )
        for name in ("weights", "validation_distances"):
            unknown = sorted(set(getattr(self, name)) - set(self.representations))
            if unknown:
                raise ValueError(
                    f"model.{name} names {', '.join(unknown)}; the representations are "
                    f"{', '.join(self.representations)}."
                )
        for name, distance in self.validation_distances.items():
            if not distance > 0:
                raise ValueError(f"model.validation_distances.{name} must be positive, got {distance}.")
        if self.num_warm_start < 2:
            raise ValueError(f"model.num_warm_start must be at least 2, got {self.num_warm_start}.")

    def build(self) -> Any:
        """The generator to be post-trained; raises what its configs raise.

        Raises:
            ValueError: a whole generator with an autoencoder or guidance beside it, or without ``prompts``.
        """
        built = self.generator.build()
        if isinstance(built, JiT | MiT):
            built = ClassGenerator(
                denoiser=built,
                autoencoder=None if self.autoencoder is None else self.autoencoder.build(),
                guidance_scale=self.guidance_scale,
                guidance_interval=self.guidance_interval,
            )
        elif self.autoencoder is not None or self.guidance_scale != 1:
            raise ValueError(
                f"model.generator makes a whole {type(built).__name__}: leave out model.autoencoder and guidance_scale."
            )
        elif self.prompts is None:
            raise ValueError(f"model.prompts must name a source of captions for a {type(built).__name__}, got none.")
        if self.checkpoint_activations:
            built.checkpoint_activations()
        return built

    def companion(self, model: OneStepGenerator, run_dir: Path) -> "ClassFDPostTraining":
        """The objective ``fd``, with what it keeps between steps."""
        return ClassFDPostTraining(self, model)

    def objectives(self) -> dict[str, Objective]:
        """None without state; see ``companion``."""
        return {}

    def scorers(self) -> dict[str, Any]:
        """None: ``fd/NAME`` of the log tells the distances."""
        return {}


class ClassFDPostTraining:
    """The loss of one run: networks, real moments, and the population."""

    def __init__(self, config: ClassFDLossConfig, model: Any) -> None:
        self.config = config
        self.model = model
        self.networks: dict[str, Features] = {name: one.build() for name, one in config.representations.items()}
        self.references = {name: self._reference(name) for name in self.networks}
        self.loss: FDLoss | None = None
        self._distances: dict[str, Tensor] = {}

    def _reference(self, name: str) -> Moments:
        """Raises ``ValueError`` where the file says that it is of another network or preprocessing."""
        path, network = self.config.references[name], self.networks[name]
        moments = Moments.load(path)
        for field_name, own in (("network", network.network_id), ("preprocessing", network.fingerprint)):
            theirs = getattr(moments, field_name)
            if theirs is not None and theirs != own:
                raise ValueError(f"model.references.{name}: {path} is of the {field_name} {theirs!r}, not {own!r}.")
        if moments.dim != network.dim:
            raise ValueError(
                f"model.references.{name}: {path} has {moments.dim} dimensions, the network gives {network.dim}."
            )
        return moments

    def objectives(self) -> dict[str, Objective]:
        return {"fd": self.objective}

    def scorers(self) -> dict[str, Any]:
        return {}

    def objective(self, model: OneStepGenerator, batch: Any, generator: torch.Generator) -> dict[str, LossTerm]:
        """``fd``: about the sum of the weights for ever; the distances of ``metrics`` tell the progress."""
        result = self._loss()(self._features(model(batch)))
        self._distances = result.distances
        return {"fd": LossTerm(result.loss, torch.ones_like(result.loss))}

    def _loss(self) -> FDLoss:
        if self.loss is None:
            raise ValueError("ClassFDPostTraining.begin_stage comes before its first loss.")
        return self.loss

    def _features(self, images: Float[Tensor, "batch 3 height width"]) -> dict[str, Tensor]:
        """Of images that may leave [-1, 1], where a clamp would end their gradient."""
        found = {}
        for name, network in self.networks.items():
            extract = partial(network.to(images.device), value_range=(-1, 1), outside="keep")
            if self.config.checkpoint_activations and torch.is_grad_enabled():
                extract = partial(checkpoint, extract, use_reentrant=False)
            found[name] = extract(images)
        return found

    def begin_stage(self, name: str, stage: Stage, is_new: bool) -> None:
        """The population of the generator as it is.

        Raises:
            ValueError: the stage accumulates gradients, of which each would see a population of its own.
        """
        check_whole_batches(name, stage)
        self.model.eval()
        self.loss = FDLoss(
            {
                key: Representation(
                    reference=FrechetReference.of(moments, self.model.device),
                    estimator=self.config.population.build(moments.dim, stage.num_steps),
                    weight=self.config.weights.get(key, 1.0),
                    validation_distance=self.config.validation_distances.get(key),
                    route=WarmRoute.within(self.config.gradient_tolerance),
                )
                for key, moments in self.references.items()
            },
            constant=self.config.constant,
            gather=gather_features,
        )
        if is_new:
            self.loss.warm_start(self.drawn_features(self.config.num_warm_start))

    @torch.no_grad()
    def drawn_features(self, num_images: int) -> dict[str, Float[Tensor, "images dim"]]:
        """Features of images of all classes, or of the source's captions, in turn; the same ones every time."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.networks}
        prompts = self.config.prompts or ClassLabels(num_classes=self.model.denoiser.num_classes)
        source, collate = prompts.build(), self.model.collator()
        for start in range(0, num_images, _BATCH):
            indices = range(start, min(start + _BATCH, num_images))
            seeds = [derive_key(0, "fd image", index) >> 1 for index in indices]
            batch = collate([source.example(index % len(source), 0) for index in indices], seeds)
            for name, rows in self._features(self.model(batch.to(self.model.device))).items():
                found[name].append(rows)
        return {name: torch.cat(rows) for name, rows in found.items()}

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
