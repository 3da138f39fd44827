"""The vision tower of Qwen2.5-VL (arXiv 2502.13923, section 2.1) through ``transformers``: windowed attention on images
of any size, and a merger that makes one token of every 2 x 2 patches, at the width of the language model.

The model's own forward is used. A frame is shown twice, as Qwen's processor does with an image. Videos are not read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from diptych.models.encoders.eva_clip import CLIP_MEAN, CLIP_STD
from diptych.models.encoders.processor_rule import normalize
from diptych.models.encoders.protocol import EncoderOutput, check_image_size
from diptych.models.part import part_kind
from diptych.models.preprocess import resize_pixels, size_within_pixel_budget, to_float

PIXEL_BUDGET = (4 * 28 * 28, 16_384 * 28 * 28)
"""(least, most) pixels of an image, as the processors of the released Qwen2.5-VL models have them."""


class QwenVisionEncoder(nn.Module):
    """The tower with random weights.

    Args:
        config: the ``vision_config`` of a Qwen2.5-VL model as a dictionary.
        pixel_budget: (least, most) pixels that ``preprocess`` makes.
    """

    def __init__(self, *, config: Mapping[str, Any], pixel_budget: Sequence[int] = PIXEL_BUDGET) -> None:
        super().__init__()
        from transformers import Qwen2_5_VLConfig
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

        given = {**config, "model_type": "qwen2_5_vl_vision"}
        vision_config: Any = Qwen2_5_VLConfig(vision_config=given).vision_config
        self.model: Any = Qwen2_5_VisionTransformerPretrainedModel._from_config(
            vision_config, attn_implementation="sdpa", dtype=torch.get_default_dtype()
        )
        self.dim = int(vision_config.out_hidden_size)
        self.num_layers = int(vision_config.depth)
        self.merge = int(vision_config.spatial_merge_size)
        self.frames = int(vision_config.temporal_patch_size)
        self.patch_size = int(vision_config.patch_size) * self.merge
        """Pixels to a merged token."""
        self.pixel_budget = (int(pixel_budget[0]), int(pixel_budget[1]))

    def preprocess(
        self, pixels: NDArray[np.uint8], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "3 height width"]:
        """Bicubic resize by the rule of Qwen's processor, or to ``size``, in [-1, 1]."""
        if size is None:
            height, width = pixels.shape[:2]
            size = size_within_pixel_budget(height, width, self.patch_size, *self.pixel_budget)
        return to_float(resize_pixels(pixels, size, "bicubic", "stretch", self.patch_size))

    def forward(self, images: Float[Tensor, "batch 3 height width"], layers: Sequence[int] = ()) -> EncoderOutput:
        """Merged tokens, one for every ``patch_size`` pixels each way; there is no pooled output.

        Raises:
            ValueError: sides that are no multiples of ``patch_size``, or layers: lower ones stand in the order of
                windows and at another width.
        """
        check_image_size(images, self.patch_size, "Qwen2.5-VL's vision tower")
        if layers:
            raise ValueError(
                f"Qwen2.5-VL's vision tower gives its last tokens only, but layers {list(layers)} were asked."
            )
        grid = images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size
        patches = rearrange(
            normalize(images, CLIP_MEAN, CLIP_STD)[:, :, None].expand(-1, -1, self.frames, -1, -1),
            "batch c t (rows y p) (cols x q) -> (batch rows cols y x) (c t p q)",
            rows=grid[0],
            cols=grid[1],
            y=self.merge,
            x=self.merge,
        )
        sizes = torch.tensor([[1, grid[0] * self.merge, grid[1] * self.merge]] * len(images), device=images.device)
        output = self.model(patches, grid_thw=sizes)
        tokens = output if isinstance(output, Tensor) else output.pooler_output
        return EncoderOutput(tokens.unflatten(0, (len(images), -1)), grid)

    def config_dict(self) -> dict[str, Any]:
        config = self.model.config.to_diff_dict()
        for name in ("transformers_version", "dtype", "_attn_implementation_autoset", "model_type"):
            config.pop(name, None)
        return {"kind": part_kind(self), "config": config, "pixel_budget": list(self.pixel_budget)}
