"""Released vision towers through ``transformers``: CLIP, SigLIP, SigLIP 2, DINOv2, DINOv3, MAE, I-JEPA and
ConvNeXt V2.

Only the vision part is loaded, with the resize rule, mean and std of its processor. Tokens and pooled output are those
of the model in transformers, without class and register tokens. CLIP has no norm after its last block for patch
tokens (its post-norm is the class token's), so its tokens are the last block's output; MAE runs without masking.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from diptych.models.encoders.processor_rule import ProcessorRule, normalize
from diptych.models.encoders.protocol import EncoderOutput, check_image_size, check_layers
from diptych.models.part import part_kind
from diptych.models.patches import patchify


@dataclass(frozen=True)
class _Family:
    """What is particular to one architecture of transformers."""

    model_class: str
    processor: str
    """Processor class whose defaults hold where a checkpoint comes without a preprocessor file."""
    has_class_token: bool = True
    has_pooler: bool = True
    """False: the pooled output is the normed class token, or the mean of the tokens where there is none."""
    pooling: str = "class-token"
    """How the pooled output comes about, in the words of `diptych.frechet.preprocessing`; before any projection."""
    interpolates_on_request: bool = False
    """Positions are resampled for other sizes only if the call says so."""


FAMILIES: dict[str, _Family] = {
    "clip_vision_model": _Family("CLIPVisionModel", "CLIPImageProcessor", interpolates_on_request=True),
    "siglip_vision_model": _Family(
        "SiglipVisionModel",
        "SiglipImageProcessor",
        has_class_token=False,
        pooling="attention",
        interpolates_on_request=True,
    ),
    "siglip2_vision_model": _Family(
        "Siglip2VisionModel", "Siglip2ImageProcessor", has_class_token=False, pooling="attention"
    ),
    "dinov2": _Family("Dinov2Model", "BitImageProcessor"),
    "dinov2_with_registers": _Family("Dinov2WithRegistersModel", "BitImageProcessor"),
    "dinov3_vit": _Family("DINOv3ViTModel", "DINOv3ViTImageProcessor"),
    "vit_mae": _Family("ViTMAEModel", "ViTImageProcessor", has_pooler=False, interpolates_on_request=True),
    "ijepa": _Family(
        "IJepaModel",
        "ViTImageProcessor",
        has_class_token=False,
        has_pooler=False,
        pooling="mean",
        interpolates_on_request=True,
    ),
    "convnextv2": _Family("ConvNextV2Model", "ConvNextImageProcessor", has_class_token=False, pooling="network"),
}
"""Known architectures by the ``model_type`` of their config."""

_VISION_PARTS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model", "siglip2": "siglip2_vision_model"}
"""Two-tower models, of which the vision config is taken."""


class HuggingFaceEncoder(nn.Module):
    """A vision tower of transformers behind the encoder protocol.

    Made by ``load_huggingface_encoder`` from a released checkpoint; the constructor makes it with random weights.

    Args:
        model_config: the vision model's config as a dict, with its ``model_type``.
        processor: a ``ProcessorRule`` as a dict; ``None`` takes the family's own at the model's image size.
    """

    def __init__(self, *, model_config: Mapping[str, Any], processor: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        import transformers

        model_type = str(model_config.get("model_type"))
        if model_type not in FAMILIES:
            raise ValueError(f"vision model type {model_type!r} is not known; known are {', '.join(FAMILIES)}.")
        family = FAMILIES[model_type]
        values = {name: value for name, value in model_config.items() if name != "model_type"}
        config = transformers.AutoConfig.for_model(model_type, **values)
        if model_type == "vit_mae":
            config.mask_ratio = 0.0
        model_class = getattr(transformers, family.model_class)
        # eager attention would be as right, but several times slower
        self.model = model_class._from_config(config, attn_implementation=_attention_kind(model_class))
        self.family = model_type
        self.rule = _default_rule(family.processor, config) if processor is None else ProcessorRule.from_dict(processor)
        self.is_hierarchical = model_type == "convnextv2"
        if self.is_hierarchical:
            self.dim = int(config.hidden_sizes[-1])
            self.num_layers = len(config.depths)
            self.patch_size = int(config.patch_size) * 2 ** (self.num_layers - 1)
        else:
            self.dim = int(config.hidden_size)
            self.num_layers = int(config.num_hidden_layers)
            self.patch_size = int(config.patch_size)
        self.num_prefix_tokens = int(family.has_class_token) + int(getattr(config, "num_register_tokens", 0))
        self.trained_size = None if model_type == "siglip2_vision_model" else int(config.image_size)

    @property
    def own_pooling(self) -> str:
        """How the pooled output comes about: ``class-token``, ``attention``, ``mean`` or ``network`` (its own way)."""
        return FAMILIES[self.family].pooling

    def preprocess(
        self, pixels: NDArray[np.uint8], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "3 height width"]:
        """The resize rule of the encoder's processor, in [-1, 1]; ``size`` asks for another size by the same rule."""
        return self.rule.apply(pixels, size)

    def forward(self, images: Float[Tensor, "batch 3 height width"], layers: Sequence[int] = ()) -> EncoderOutput:
        """Tokens, pooled vector and the layers asked for; layer i is the output of block (ConvNeXt: stage) i.

        Raises:
            ValueError: sides that are neither the trained size nor multiples of ``patch_size``, or no such layer.
        """
        if images.shape[-2:] != (self.trained_size, self.trained_size):
            check_image_size(images, self.patch_size, f"the {self.family} encoder")
        check_layers(layers, self.num_layers, f"the {self.family} encoder")
        rows, cols = images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size
        normalized = normalize(images, self.rule.mean, self.rule.std)
        with self._record(layers) as states:
            output = self.model(**self._inputs(normalized, rows, cols))
        tokens = output.last_hidden_state
        family = FAMILIES[self.family]
        unpooled = tokens[:, 0] if family.has_class_token else tokens.mean(1)
        pooled = output.pooler_output if family.has_pooler else unpooled
        layer_tokens = {index: self._patch_tokens(states[index]) for index in layers}
        return EncoderOutput(self._patch_tokens(tokens), (rows, cols), pooled, layer_tokens)

    def config_dict(self) -> dict[str, Any]:
        config = self.model.config.to_diff_dict() | {"model_type": self.family}
        unneeded = ("transformers_version", "architectures", "dtype", "torch_dtype", "_name_or_path")
        model_config = {name: value for name, value in config.items() if name not in unneeded}
        return {"kind": part_kind(self), "model_config": model_config, "processor": self.rule.to_dict()}

    def _inputs(self, images: Float[Tensor, "batch 3 height width"], rows: int, cols: int) -> dict[str, Any]:
        batch, device = images.shape[0], images.device
        images = images.to(next(self.model.parameters()).dtype)
        if self.family == "siglip2_vision_model":
            patches = patchify(images, self.patch_size).unflatten(-1, (3, -1)).transpose(-1, -2)  # channels last here
            return {
                "pixel_values": patches.flatten(2),
                "pixel_attention_mask": torch.ones(batch, rows * cols, dtype=torch.int32, device=device),
                "spatial_shapes": torch.tensor([[rows, cols]] * batch, device=device),
            }
        inputs: dict[str, Any] = {"pixel_values": images}
        if self.family == "vit_mae":  # the order of the noise is the order of the patches: nothing is shuffled
            inputs["noise"] = torch.arange(rows * cols, device=device).float().expand(batch, -1)
        if FAMILIES[self.family].interpolates_on_request and images.shape[-2:] != (self.trained_size,) * 2:
            inputs["interpolate_pos_encoding"] = True
        return inputs

    def _patch_tokens(self, states: Tensor) -> Float[Tensor, "batch patches dim"]:
        if self.is_hierarchical:
            return states.flatten(2).transpose(1, 2)
        return states[:, self.num_prefix_tokens :]

    @contextmanager
    def _record(self, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """Collects what goes into the first block (0) and comes out of block i."""
        states: dict[int, Tensor] = {}
        blocks = self._blocks()

        def keep_input(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            states[0] = arguments[0] if arguments else named["hidden_states"]

        def keep_output(index: int) -> Any:
            def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
                states[index] = output[0] if isinstance(output, tuple) else output

            return hook

        handles = [blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True)] if 0 in layers else []
        handles += [blocks[i - 1].register_forward_hook(keep_output(i)) for i in layers if i > 0]
        try:
            yield states
        finally:
            for handle in handles:
                handle.remove()

    def _blocks(self) -> nn.ModuleList:
        """The list of blocks; its name differs between families and versions, its length does not."""
        for module in self.model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == self.num_layers:
                return module
        raise ValueError(f"no list of {self.num_layers} blocks found in the {self.family} encoder.")


def load_huggingface_encoder(
    source: str | Path, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> HuggingFaceEncoder:
    """Loads the vision part of a released checkpoint from a local folder or a hub id, in evaluation mode.

    Raises:
        ValueError: an architecture or processor that is not known, or a checkpoint without some vision weight.
        OSError: nothing there (the message of transformers).
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(str(source), revision=revision)
    if config.model_type in _VISION_PARTS:
        config = config.vision_config
    model_type = _VISION_PARTS.get(config.model_type, config.model_type)
    if model_type not in FAMILIES:
        raise ValueError(
            f"{source}: vision model type {model_type!r} is not known; known are {', '.join(FAMILIES)} and the "
            f"two-tower models {', '.join(_VISION_PARTS)}."
        )
    processor = _read_processor(str(source), revision)
    rule = None if processor is None else ProcessorRule.from_processor_config(processor).to_dict()
    with torch.device("meta"):
        encoder = HuggingFaceEncoder(model_config=config.to_dict() | {"model_type": model_type}, processor=rule)
    model_class = type(encoder.model)
    model, info = model_class.from_pretrained(
        str(source),
        config=encoder.model.config,
        revision=revision,
        dtype=dtype,
        attn_implementation=_attention_kind(model_class),
        output_loading_info=True,
    )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{source}: {len(missing)} weights of the vision model are not in the checkpoint; the first is "
            f"{missing[0]}."
        )
    encoder.model = model
    return encoder.eval()


def _read_processor(source: str, revision: str | None) -> dict[str, Any] | None:
    from transformers.utils.hub import cached_file

    for name in ("preprocessor_config.json", "processor_config.json"):
        path = cached_file(
            source,
            name,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if path is not None:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            values = values.get("image_processor", values)
            if "image_processor_type" in values or "feature_extractor_type" in values:
                return dict(values)
    return None


def _default_rule(processor: str, config: Any) -> ProcessorRule:
    """The family's rule at the size the model says it was trained at."""
    values: dict[str, Any] = {"image_processor_type": processor}
    if processor == "Siglip2ImageProcessor":
        return ProcessorRule.from_processor_config(
            values | {"patch_size": config.patch_size, "max_num_patches": config.num_patches}
        )
    side = int(config.image_size)
    if processor in ("CLIPImageProcessor", "BitImageProcessor"):
        values |= {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    elif processor == "ConvNextImageProcessor":
        values |= {"size": {"shortest_edge": side}}
    else:
        values |= {"size": {"height": side, "width": side}}
    return ProcessorRule.from_processor_config(values)


def _attention_kind(model_class: Any) -> str | None:
    return "sdpa" if getattr(model_class, "_supports_sdpa", False) else None
