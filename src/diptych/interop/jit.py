"""JiT checkpoints: those of the paper's code (LTH14/JiT) and of FD-loss (Jiawei-Yang/FD-loss, ``checkpoints/*/JiT-*``).

Both name the network ``net.*``, and its backbone's time is ours (0 is noise). FD-loss post-trains the raw weights under
``model`` and its results are theirs; the paper's code means ``model_ema1`` when it samples. What is kept apart here is
joint there (``qkv``, ``w12``), and in the last layer a patch's values are ordered (row, column, channel).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from einops import rearrange
from torch import Tensor

from diptych.interop.weight_files import count_layers, load_exactly, read_checkpoint, strip_prefix
from diptych.models.denoisers.jit import JiT

_MODULES = {
    "t_embedder.mlp.0": "time_in.first",
    "t_embedder.mlp.2": "time_in.last",
    "y_embedder.embedding_table": "class_in",
    "x_embedder.proj1": "patch_in.0",
    "x_embedder.proj2": "patch_in.1",
    "final_layer.norm_final": "out_norm",
    "final_layer.linear": "patch_out",
    "final_layer.adaLN_modulation.1": "out_modulation",
}
_BLOCK_MODULES = {
    "norm1": "attention_norm",
    "norm2": "ffn_norm",
    "attn.q_norm": "attention.query_norm",
    "attn.k_norm": "attention.key_norm",
    "attn.proj": "attention.out",
    "mlp.w3": "ffn.down",
    "adaLN_modulation.1": "modulation",
}
_JOINT = {
    "attn.qkv": ("attention.query", "attention.key", "attention.value"),
    "mlp.w12": ("ffn.gate", "ffn.up"),
}
_IN_CONTEXT_STARTS = {12: 4, 24: 8, 32: 10}
"""The block at which class tokens come in leaves no trace in the weights: by depth, as published."""


def from_official_jit(state_dict: Mapping[str, Tensor], prefix: str = "net.") -> dict[str, Tensor]:
    """Weights for `JiT` from those keys of a checkpoint that start with ``prefix``.

    Raises:
        ValueError: no key has the prefix, or one that has it belongs to no layer of this architecture.
    """
    given = strip_prefix(state_dict, prefix)
    patch_size = given["x_embedder.proj1.weight"].shape[-1]
    names = _key_map(count_layers(given, "blocks"))
    unknown = sorted(given.keys() - names.keys())
    if unknown:
        raise ValueError(f"{len(unknown)} keys belong to no layer of JiT, such as {unknown[0]!r}.")
    converted: dict[str, Tensor] = {}
    for key, value in given.items():
        parts = names[key]
        converted |= dict(zip(parts, value.chunk(len(parts)), strict=True))
    for key in ("patch_in.0.weight", "patch_in.1.weight"):
        converted[key] = converted[key].flatten(1)  # a convolution over patches is a linear layer of patches
    for key in ("positions", "in_context_positions"):
        converted[key] = converted[key].squeeze(0)
    for key in ("patch_out.weight", "patch_out.bias"):
        converted[key] = rearrange(converted[key], "(p q c) ... -> (c p q) ...", p=patch_size, q=patch_size)
    return converted


def official_jit_config(
    state_dict: Mapping[str, Tensor], prefix: str = "net.", in_context_start: int | None = None
) -> dict[str, Any]:
    """Arguments of the `JiT` that the weights of a checkpoint (names of the released code) belong to.

    Args:
        in_context_start: the block at which class tokens come in; None for the published depths.

    Raises:
        ValueError: no key has the prefix, or the depth is not a published one and ``in_context_start`` is not given.
    """
    given = strip_prefix(state_dict, prefix)
    bottleneck_dim, channels, _, patch_size = given["x_embedder.proj1.weight"].shape
    _, num_patches, dim = given["pos_embed"].shape
    num_layers = count_layers(given, "blocks")
    start = _IN_CONTEXT_STARTS.get(num_layers) if in_context_start is None else in_context_start
    if start is None:
        raise ValueError(
            f"JiT is published with 12, 24 or 32 blocks, this one has {num_layers}: give in_context_start."
        )
    return {
        "image_size": round(num_patches**0.5) * patch_size,
        "patch_size": patch_size,
        "dim": dim,
        "num_layers": num_layers,
        "num_heads": dim // len(given["blocks.0.attn.q_norm.weight"]),
        "bottleneck_dim": bottleneck_dim,
        "num_classes": len(given["y_embedder.embedding_table.weight"]) - 1,
        "in_context_start": start,
        "num_in_context": given["in_context_posemb"].shape[1],
        "channels": channels,
        "ffn_dim": given["blocks.0.mlp.w3.weight"].shape[1],
    }


def load_jit(path: str | Path, entry: str = "model", learned_positions: bool = False) -> JiT:
    """A released JiT in evaluation mode.

    Args:
        path: a ``.pth`` file of either code.
        entry: whose weights: ``model`` for FD-loss; ``model_ema1`` for checkpoints of the paper's code.
        learned_positions: whether further training changes the position codes, as FD-loss does.

    Raises:
        FileNotFoundError: not there.
        ValueError: damaged, another network, or a file that holds more than tensors and plain values.
    """
    state_dict = read_checkpoint(path, entry)
    config = official_jit_config(state_dict)
    config["noise_scale"] = 2.0 if config["image_size"] == 512 else 1.0  # the commands of the paper's code
    network = JiT(**config, learned_positions=learned_positions)
    load_exactly(network, from_official_jit(state_dict), f"{path} does not hold a JiT")
    return network.eval()


@dataclass(frozen=True, kw_only=True)
class JiTCheckpoint:
    """A released JiT as the generator of a recipe."""

    path: str
    """A ``.pth`` file of FD-loss or of the paper's code."""
    entry: str = "model"
    """Whose weights; ``model_ema1`` in files of the paper's code."""
    learned_positions: bool = True
    """Whether training changes the position codes; it does in FD-loss."""

    def build(self) -> JiT:
        """Raises as `load_jit` does."""
        return load_jit(self.path, self.entry, self.learned_positions)


def _key_map(num_layers: int) -> dict[str, tuple[str, ...]]:
    """Every key a checkpoint may have -> ours, of which a joint matrix has several."""
    modules: dict[str, tuple[str, ...]] = {theirs: (ours,) for theirs, ours in _MODULES.items()}
    for layer in range(num_layers):
        block = {theirs: (ours,) for theirs, ours in _BLOCK_MODULES.items()} | _JOINT
        for theirs, parts in block.items():
            modules[f"blocks.{layer}.{theirs}"] = tuple(f"blocks.{layer}.{ours}" for ours in parts)
    names: dict[str, tuple[str, ...]] = {
        "pos_embed": ("positions",),
        "in_context_posemb": ("in_context_positions",),
    }
    for theirs, parts in modules.items():
        for kind in ("weight", "bias"):
            names[f"{theirs}.{kind}"] = tuple(f"{ours}.{kind}" for ours in parts)
    return names
