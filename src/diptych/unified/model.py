"""The unified model: parts composed by passing objects, and the one face that load, train, evaluate and serve speak to.

A prompt becomes one sequence (``data.prompt_format``), the backbone reads it, and from its hidden states come text (the
backbone's own logits) or an image (an image head turns the hidden states at its positions into features, which the
generation space decodes).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.data.batch import Batch, Collator, ImageGroup
from diptych.data.example import Example, Part
from diptych.data.feature_cache import FeatureCache
from diptych.data.prompt_format import ImageRules, PromptFormat, prompt_parts
from diptych.data.tokenizer import Tokenizer
from diptych.flow.solvers import OnStep
from diptych.models.backbones.protocol import BackboneOutput, Cache
from diptych.unified.drawing import conditions_of, generate_images
from diptych.unified.offload import PartDevices, Stage, StagedPlacement
from diptych.unified.settings import DrawSettings, GridTable, ImagePolicy
from diptych.unified.tokens import draws_by_tokens


class UnifiedModel(nn.Module):
    """A model that reads and makes images.

    Attributes:
        encoder: vision encoder of the images that are looked at. ``None``: the backbone looks at the features of the
            generation space, which are then both read and drawn.
        connector: image features to the backbone's width.
        image_head: draws features; ``None`` for a model that only understands.
        autoencoder: the generation space.
        card: what ``info`` shows: name, licence, training summary, scores.
        placement: keeps on the device what the present stage of inference runs (`offload_to`), or parts on devices of
            their own (`place`); None: all is on one.
        bits: of the weights of backbone and denoiser (`low_bits.use_low_bits`); None in full precision.
    """

    # Parts are nn.Modules that offer the protocols of models/; nn.Module's own attributes are not typed so finely.
    autoencoder: Any
    encoder: Any
    connector: Any
    backbone: Any
    image_head: Any

    def __init__(
        self,
        *,
        backbone: nn.Module,
        tokenizer: Tokenizer,
        prompt_format: PromptFormat,
        connector: nn.Module | None = None,
        encoder: nn.Module | None = None,
        image_head: nn.Module | None = None,
        autoencoder: nn.Module | None = None,
        images: ImagePolicy | None = None,
        draw: DrawSettings | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.prompt_format = prompt_format
        self.images = images or ImagePolicy()
        self.draw_settings = draw or DrawSettings()
        self.card = dict(card or {})
        self.placement: StagedPlacement | PartDevices | None = None
        self.bits: int | None = None
        self.autoencoder = autoencoder
        self.encoder = encoder
        self.connector = connector
        self.backbone = backbone
        self.image_head = image_head
        self._check_tokenizer()

    # -- parts ---------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the model runs: its backbone, if parts have devices of their own."""
        return next(self.parameters()).device if self.placement is None else self.placement.device

    def offload_to(self, device: torch.device | str) -> None:
        """From now on runs on ``device`` and keeps there only what the present stage runs; for inference alone."""
        self.placement = StagedPlacement(self, device)

    def place(self, devices: Mapping[str, torch.device | str]) -> None:
        """From now on parts run on devices of their own (`PartDevices`); for inference alone."""
        self.placement = PartDevices(self, devices)

    def device_of(self, part: str) -> torch.device:
        """Where a part runs."""
        return self.device if self.placement is None else self.placement.device_of(part)

    def enter_stage(self, stage: Stage) -> None:
        """Tells the placement, where there is one, what is run next."""
        if self.placement is not None:
            self.placement.enter(stage)

    def parts(self) -> dict[str, nn.Module]:
        """The parts the model has, by name."""
        return dict(self.named_children())

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What the model can do, among text, image_to_text, text_to_image and image_edit."""
        sees = self.connector is not None or getattr(self.image_head, "reads_codes", False)
        draws = self.image_head is not None
        return ("text", *["image_to_text"] * sees, *["text_to_image"] * draws, *["image_edit"] * (sees and draws))

    def _check_tokenizer(self) -> None:
        lacking = [name for name in self.prompt_format.special_tokens() if name not in self.tokenizer.special]
        if lacking:
            raise ValueError(
                f"the prompt format uses special tokens that the tokenizer lacks: {', '.join(lacking)}. "
                "Use the tokenizer saved beside the weights, or add them with tokenizer.with_special_tokens."
            )
        if self.tokenizer.vocab_size > self.backbone.vocab_size:
            raise ValueError(
                f"the tokenizer has {self.tokenizer.vocab_size} tokens, but the backbone knows only "
                f"{self.backbone.vocab_size}: they belong to two models. Use the tokenizer saved beside the weights."
            )

    def collator(self, cache: FeatureCache | None = None, row_length: int | None = None) -> Collator:
        """Makes batches for this model; picklable, holds none of its weights."""
        head = self.image_head
        grids = GridTable.of(self)
        return Collator(
            tokenizer=self.tokenizer,
            prompt_format=self.prompt_format,
            rules=ImageRules(grids, head.num_queries if head is not None else 0, bool(head and head.full_queries)),
            prepare=self.images.prepare,
            cache=cache,
            pixels_per_cell=grids.pixels_per_cell,
            row_length=row_length,
            position_axes=getattr(self.backbone, "position_axes", 1),
            with_context=getattr(head, "sees_context", False),
            with_text=getattr(head, "sees_text", False),
        )

    def generation_space(self) -> Any:
        """The part that images are drawn in.

        Raises:
            ValueError: the model has none.
        """
        if self.autoencoder is None:
            raise ValueError("this model has no generation space: it cannot draw. `diptych info` lists its parts.")
        return self.autoencoder

    # -- the forward pass ------------------------------------------------------------------------------------------

    def encode_inputs(
        self, images: Float[Tensor, "images 3 height width"]
    ) -> Float[Tensor, "images channels rows cols"]:
        """Features of images that are looked at, before the connector."""
        self.enter_stage("read pictures")
        if self.encoder is None:
            seen: Tensor = self.generation_space().encode(images.to(self.device_of("autoencoder")))
            return seen.to(self.device)
        output = self.encoder(images.to(self.device_of("encoder")))
        rows, columns = output.grid
        return output.tokens.transpose(1, 2).unflatten(2, (rows, columns)).to(self.device)

    def encode_outputs(
        self, images: Float[Tensor, "images 3 height width"]
    ) -> Float[Tensor, "images channels rows cols"]:
        """Features of images that are drawn, as the image head is to draw them."""
        self.enter_stage("render")
        encoded: Tensor = self.generation_space().encode(images.to(self.device_of("autoencoder")))
        return encoded.to(self.device)

    def group_features(self, group: ImageGroup, is_output: bool) -> Float[Tensor, "images channels rows cols"]:
        """The features of a group: those that were cached, or those of its images."""
        if group.features is not None:
            return group.features
        if group.images is None:
            raise ValueError(
                "a batch for training holds an image that is yet to be drawn: give every ImageOut an image."
            )
        return self.encode_outputs(group.images) if is_output else self.encode_inputs(group.images)

    def embed(self, batch: Batch) -> Float[Tensor, "rows seq dim"]:
        """The input of the backbone: token embeddings, image features and queries, each in its place."""
        self.enter_stage("read pictures" if batch.inputs else "read")
        embeddings = self.backbone.embed(batch.token_ids)
        shape = embeddings.shape
        flat = embeddings.reshape(-1, shape[-1])
        for group in batch.inputs:
            tokens = self._embed_seen(group)
            flat = flat.index_copy(0, group.slots.flatten(), tokens.flatten(0, 1).to(flat.dtype))
        for group in batch.outputs:
            queries = self._embed_drawn(group)
            flat = flat.index_copy(0, group.slots.flatten(), queries.flatten(0, 1).to(flat.dtype))
        return flat.reshape(shape)

    def _embed_seen(self, group: ImageGroup) -> Float[Tensor, "images tokens dim"]:
        """What stands in the places of images that are looked at: their features, or the tokens of their codes."""
        if getattr(self.image_head, "reads_codes", False) and group.images is not None:
            codes = self.encoder.codes(group.images.to(self.device_of("encoder"))).to(self.device)
            return self.backbone.embed(self.image_head.token_ids(codes)[:, 1:])
        if self.connector is None:
            raise ValueError("this model cannot look at images. `diptych info` lists what it can do.")
        features = rearrange(
            self.group_features(group, is_output=False), "images dim rows cols -> images rows cols dim"
        )
        return self.connector(features).flatten(1, 2)

    def _embed_drawn(self, group: ImageGroup) -> Float[Tensor, "images queries dim"]:
        """What stands in the places of images that are drawn: queries, or the tokens written so far."""
        if self.image_head is None:
            raise ValueError("this model cannot draw images. `diptych info` lists what it can do.")
        if draws_by_tokens(self.image_head):
            if group.codes is None:
                raise ValueError(
                    "this model draws by discrete tokens, and a batch holds an image without codes. "
                    "unified.tokens.with_codes adds them."
                )
            return self.backbone.embed(self.image_head.token_ids(group.codes))
        return self.image_head.query_embeddings(len(group))

    def forward(self, batch: Batch, layers: Sequence[int] = (), cache: Cache | None = None) -> BackboneOutput:
        """One pass of the backbone over a batch."""
        mask = None if batch.layout.is_plain_causal else batch.layout.mask()
        return self.backbone(self.embed(batch), batch.layout.positions, mask, cache, layers)

    # -- drawing ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def generate_image(
        self,
        prompts: Any,
        num_images: int = 1,
        size: tuple[int, int] | int | None = None,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: Any = None,
        seed: int | Sequence[int] = 0,
        think: bool | None = None,
        on_step: OnStep | None = None,
        batch_size: int | Literal["auto"] = "auto",
    ) -> list[Image.Image]:
        """Draws ``num_images`` images for every prompt; image k of prompt i is at ``i * num_images + k``.

        An image that was thought about before it was drawn has the thought in ``image.info["thought"]``.

        Args:
            prompts: one prompt (a ``str`` or a list of parts) or a batch (every element a list, or every element a
                ``str``).
            size: (height, width) in pixels, or one number for both; the model's own when absent.
            guidance_scale: 1 is off.
            negative_prompt: what guidance leads away from; by default the null condition.
            seed: one number (prompt i, image k takes ``seed + i * num_images + k``), or one number per prompt (image k
                takes ``seed + k``). An image depends on its prompt, seed and settings alone.
            think: write a thought before each image, unless the prompt ends in one; the model's own habit when absent.
            batch_size: images drawn at a time.

        Raises:
            ValueError: bad settings, an empty prompt, a size the model cannot draw.
        """
        settings = self._settings(num_steps, guidance_scale, think)
        return generate_images(self, prompts, num_images, size, settings, negative_prompt, seed, on_step, batch_size)

    def condition_rows(
        self, output: BackboneOutput, group: ImageGroup
    ) -> tuple[Float[Tensor, "images rows dim"], Bool[Tensor, "images rows"] | None]:
        """What the image head draws the images of a group from, out of a pass over their whole batch.

        Hidden states at the head's own positions; where it ``sees_context``, the embeddings of the pictures before
        them, brought to the same scale; where it ``sees_text``, hidden states of the text before them. The mask is True
        where a row counts; None if all do.
        """
        hidden_states = output.hidden_states.flatten(0, 1)
        rows = [hidden_states[group.slots]]
        if group.context_slots.shape[1]:
            seen = output.layer_states[0].flatten(0, 1)[group.context_slots]
            rows.append(F.rms_norm(seen, seen.shape[-1:]))
        if group.text_slots.shape[1]:
            rows.append(hidden_states[group.text_slots])
        mask = torch.cat([group.slots, group.context_slots, group.text_slots], dim=1) >= 0
        return torch.cat(rows, dim=1), None if mask.all() else mask

    def forward_for_drawing(self, batch: Batch) -> BackboneOutput:
        """One pass that keeps what `condition_rows` needs."""
        return self(batch, layers=(0,) if getattr(self.image_head, "sees_context", False) else ())

    def condition(
        self, requests: Sequence[tuple[Part, ...]], size: tuple[int, int], seeds: Sequence[int] | None = None
    ) -> list[Float[Tensor, "rows dim"]]:
        """What the image head draws an image after each prompt from (`condition_rows`).

        Args:
            seeds: one a prompt, for heads that sample tokens first; zeros when absent.
        """
        return conditions_of(self, requests, size, seeds)

    def _settings(self, num_steps: int | None, guidance_scale: float | None, think: bool | None) -> DrawSettings:
        settings = self.draw_settings
        if think is not None:
            settings = replace(settings, think=think)
        if num_steps is not None:
            settings = replace(settings, num_steps=num_steps)
        return settings if guidance_scale is None else replace(settings, guidance_scale=guidance_scale)

    # -- writing ---------------------------------------------------------------------------------------------------

    def generate_text(
        self,
        prompt: Any,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | Sequence[int] = 0,
        think: bool | None = None,
    ) -> str | list[str]:
        """The answer to one prompt (a ``str``), or to every prompt of a batch of lists (a list of ``str``).

        Args:
            temperature: 0 takes the likeliest token.
            top_p: smallest set of tokens whose probabilities reach it (nucleus sampling, arXiv 1904.09751).
            stop: the answer ends before the first of these strings.
            seed: one number (prompt i takes ``seed + i``), or one per prompt.
            think: write a thought first, which is not returned (`think` writes it alone); the model's own habit when
                absent.
        """
        from diptych.unified.prompts import is_batch, split_batch
        from diptych.unified.text import TextSettings, generate

        settings = TextSettings(max_new_tokens, temperature, top_p, stop)
        requests = self._thought_about(split_batch(prompt, text_batch=False), temperature, top_p, seed, think)
        answers = generate(self, requests, settings, seed)
        return answers if is_batch(prompt, text_batch=False) else answers[0]

    def stream_text(self, prompt: Any, max_new_tokens: int = 256, temperature: float = 0.0, top_p: float = 1.0,
                    stop: Sequence[str] = (), seed: int = 0, think: bool | None = None) -> Iterator[str]:  # fmt: skip
        """The answer to one prompt in pieces; joined they are what ``generate_text`` returns."""
        from diptych.unified.text import TextSettings, stream

        settings = TextSettings(max_new_tokens, temperature, top_p, stop)
        parts = self._thought_about([prompt_parts(prompt)], temperature, top_p, seed, think)[0]
        return stream(self, parts, settings, seed)

    @torch.inference_mode()
    def log_likelihood(
        self, prompt: Any, answer: str | Sequence[str], think: bool | None = None
    ) -> float | list[float]:
        """Natural logarithm of the probability of writing ``answer`` (and then ending the turn) after the prompt.

        A list of answers gives a list, in one pass. With a thought (``think``, the model's own habit when absent) it is
        the probability after the likeliest thought.
        """
        from diptych.unified.text import log_likelihood

        parts = self._thought_about([prompt_parts(prompt)], 0.0, 1.0, 0, think)[0]
        values = log_likelihood(self, parts, [answer] if isinstance(answer, str) else list(answer))
        return values[0] if isinstance(answer, str) else values

    def think(
        self, prompt: Any, to_draw: bool = False, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
    ) -> str | list[str]:
        """The thought about one prompt (a ``str``), or about every prompt of a batch of lists (a list of ``str``).

        What the model would write before an image (``to_draw``) or before an answer. Corrected or not, it can be given:
        ``generate_image([prompt, Text(thought, role="assistant", is_thought=True)])``.
        """
        from diptych.unified.prompts import is_batch, prompt_seeds, split_batch
        from diptych.unified.thoughts import thought_of, with_thoughts

        requests = split_batch(prompt, text_batch=False)
        seeds = prompt_seeds(seed, len(requests))
        thoughts = [
            thought_of(parts) or "" for parts in with_thoughts(self, requests, seeds, temperature, top_p, to_draw)
        ]
        return thoughts if is_batch(prompt, text_batch=False) else thoughts[0]

    def _thought_about(
        self,
        requests: list[tuple[Part, ...]],
        temperature: float,
        top_p: float,
        seed: int | Sequence[int],
        think: bool | None,
    ) -> list[tuple[Part, ...]]:
        """The prompts of answers, with their thoughts where the model is to think."""
        from diptych.unified.prompts import prompt_seeds
        from diptych.unified.thoughts import with_thoughts

        if not (self.draw_settings.thinks_to_answer if think is None else think):
            return requests
        return with_thoughts(self, requests, prompt_seeds(seed, len(requests)), temperature, top_p)

    @torch.inference_mode()
    def hidden_states(self, prompt: Any, layers: Sequence[int]) -> dict[int, Float[Tensor, "seq dim"]]:
        """Hidden states of one prompt at the asked layers (0: embeddings, i: output of block i), padding left out."""
        bad = [layer for layer in layers if not 0 <= layer <= self.backbone.num_layers]
        if bad:
            raise ValueError(f"layers must lie in 0..{self.backbone.num_layers}, got {bad}.")
        example = Example(prompt_parts(prompt))
        batch = self.collator()([example], open_turn=True).to(self.device)
        states = self(batch, layers=tuple(layers)).layer_states
        present = batch.layout.example_ids[0] >= 0
        return {layer: states[layer][0][present] for layer in layers}

    def chat(self) -> Any:
        """A conversation that keeps its parts and its cache."""
        from diptych.unified.chat import Chat

        return Chat(self)

    # -- folder ----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Writes the model folder: whole or not at all.

        Raises:
            ValueError: the weights are low in bits.
        """
        from diptych.unified.folder import save_model

        if self.bits is not None:
            raise ValueError(
                f"a model with weights of {self.bits} bits is not saved: load it without bits, save that, and give "
                "bits whenever it is loaded."
            )
        save_model(self, Path(path))

    def info(self) -> dict[str, Any]:
        """Parts with their parameters, capabilities, and what the model card says."""
        parts = {
            name: {"class": type(part).__name__, "parameters": sum(p.numel() for p in part.parameters())}
            for name, part in self.parts().items()
        }
        total = sum(p.numel() for p in self.parameters())
        return {**self.card, "capabilities": list(self.capabilities), "parts": parts, "parameters": total}
