"""Weights of 8 or 4 bits for inference, through ``torchao``: backbone and denoiser take a half or a quarter of bf16.

Weight-only: a linear layer keeps whole numbers and a scale for every output (8 bits) or for every 32 inputs (4 bits),
and computes in the precision of what comes in. Embeddings, norms, the output over the vocabulary, and encoders and
decoders of pictures stay as they are.
"""

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from diptych.unified.model import UnifiedModel

GROUP_SIZE = 32
"""Inputs that share a scale at 4 bits."""


def use_low_bits(model: "UnifiedModel", bits: int) -> "UnifiedModel":
    """Makes the linear layers of backbone and denoiser whole numbers, in place. The model can then no longer learn.

    Raises:
        ModuleNotFoundError: torchao is not installed.
        ValueError: ``bits`` is neither 8 nor 4; or 4 where the device and dtype have no such layers; or they are low
            already.
    """
    if bits not in (8, 4):
        raise ValueError(f"bits must be 8 or 4, got {bits}. Leave it out for full precision.")
    if model.bits is not None:
        raise ValueError(f"the model has weights of {model.bits} bits already. Load it again.")
    try:
        from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("torchao"):
            raise
        raise ModuleNotFoundError(
            f"{bits}-bit weights need the package torchao: pip install 'diptych[quant]'.", name="torchao"
        ) from None
    weight = next(model.backbone.parameters())
    kind = f"{weight.device.type} in {str(weight.dtype).removeprefix('torch.')}"
    if bits == 4 and kind != "cuda in bfloat16":
        raise ValueError(
            f"4-bit weights need a GPU of NVIDIA and bfloat16, the model is on {kind}. Take 8 bits, which run anywhere."
        )
    config: Any = (
        Int8WeightOnlyConfig()
        if bits == 8
        else Int4WeightOnlyConfig(group_size=GROUP_SIZE, int4_packing_format="tile_packed_to_4d")
    )
    parts = [model.backbone, getattr(model.image_head, "denoiser", None)]
    for part in parts:
        if part is not None:
            quantize_(part, config, filter_fn=lambda layer, name: _takes_part(layer, name, bits))
    model.requires_grad_(False)
    model.bits = bits
    return model


def _takes_part(layer: nn.Module, name: str, bits: int) -> bool:
    if not isinstance(layer, nn.Linear) or name.rpartition(".")[2] == "lm_head":
        return False
    return bits == 8 or layer.in_features % GROUP_SIZE == 0
