"""Checkpoints of pixel MeanFlow and improved MeanFlow: FD-loss's (Jiawei-Yang/FD-loss, ``pMF-*`` and ``iMF-*``) and the
torch files they start from, whose linear layers are called ``_flax_linear`` and whose tokens have an axis of batch.

Released there: time runs from data to noise and the average velocity points to noise. pMF's network makes it from a
data-like output, which needs no change here; iMF's network returns it, so its last layer changes its sign. The head of
the instantaneous velocity (``v_heads``, ``v_final_layer``) serves training alone and is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from diptych.flow.path import Prediction
from diptych.interop.weight_files import count_layers, load_exactly, read_checkpoint, strip_prefix
from diptych.models.autoencoders.diffusers import DiffusersAutoencoder, load_diffusers_autoencoder
from diptych.models.denoisers.pmf import MiT

_MODULES = {
    "y_embedder.embedding_table.embedding": "class_in",
    "u_final_layer.norm": "out_norm",
    "u_final_layer.linear.linear": "patch_out",
    "x_embedder.proj": "patch_in",
    "x_embedder.proj1": "patch_in.0",
    "x_embedder.proj2": "patch_in.1",
}
_SCALARS = {
    "omega_embedder": "guidance_in",
    "cfg_t_start_embedder": "sigma_min_in",
    "cfg_t_end_embedder": "sigma_max_in",
    "h_embedder": "duration_in",
}
_TOKENS = {
    "class_tokens": "class_tokens",
    "omega_tokens": "guidance_tokens",
    "t_min_tokens": "sigma_min_tokens",
    "t_max_tokens": "sigma_max_tokens",
    "time_tokens": "duration_tokens",
    "pos_embed": "positions",
}
_BLOCK_MODULES = {
    "norm1": "attention_norm",
    "norm2": "ffn_norm",
    "attn.q_proj.linear": "attention.query",
    "attn.k_proj.linear": "attention.key",
    "attn.v_proj.linear": "attention.value",
    "attn.out_proj.linear": "attention.out",
    "attn.q_norm": "attention.query_norm",
    "attn.k_norm": "attention.key_norm",
    "mlp.w1.linear": "ffn.gate",
    "mlp.w3.linear": "ffn.up",
    "mlp.w2.linear": "ffn.down",
}
_BLOCK_GATES = {"attn_scale": "attention_gate", "mlp_scale": "ffn_gate"}
_IGNORED = ("v_heads.", "v_final_layer.", "rope_freqs")


@dataclass(frozen=True, kw_only=True)
class DrawnAs:
    """How a released checkpoint is called in one step (arXiv 2604.28190, appendix; ``evaluate_released_ckpt.sh``)."""

    image_size: int
    """Side of the images, or of iMF's latents."""
    guidance_scale: float
    """Its omega."""
    guidance_interval: tuple[float, float]
    """In t; the released ``[t_min, t_max]`` are in sigma, so these are 1 - t_max and 1 - t_min."""
    noise_scale: float = 1.0
    """Standard deviation of the noise."""


RELEASED = {
    "pMF-B_256": DrawnAs(image_size=256, guidance_scale=8.5, guidance_interval=(0.3, 0.9)),
    "pMF-L_256": DrawnAs(image_size=256, guidance_scale=7.0, guidance_interval=(0.3, 0.8)),
    "pMF-H_256": DrawnAs(image_size=256, guidance_scale=7.0, guidance_interval=(0.4, 0.8), noise_scale=2.0),
    "pMF-B_512": DrawnAs(image_size=512, guidance_scale=6.5, guidance_interval=(0.3, 0.9), noise_scale=2.0),
    "pMF-L_512": DrawnAs(image_size=512, guidance_scale=7.5, guidance_interval=(0.4, 0.8), noise_scale=4.0),
    "pMF-H_512": DrawnAs(image_size=512, guidance_scale=5.5, guidance_interval=(0.4, 0.9), noise_scale=4.0),
    "iMF-B": DrawnAs(image_size=32, guidance_scale=8.0, guidance_interval=(0.35, 0.6)),
    "iMF-L": DrawnAs(image_size=32, guidance_scale=10.5, guidance_interval=(0.4, 0.6)),
    "iMF-XL": DrawnAs(image_size=32, guidance_scale=8.0, guidance_interval=(0.38, 0.58)),
}
"""By the names of the base files of FD-loss; its post-trained ones are called the same way."""


IMF_CHANNEL_MEAN = (0.86488, -0.27787343, 0.21616915, 0.3738409)
IMF_CHANNEL_STD = (4.85503674, 5.31922414, 3.93725398, 3.9870003)
"""Of the autoencoder's raw latents, by ``models/autoencoder.py`` of FD-loss."""


def from_official_mit(state_dict: Mapping[str, Tensor], prefix: str = "net.") -> dict[str, Tensor]:
    """Weights for `MiT` from those keys of a checkpoint that start with ``prefix``.

    Raises:
        ValueError: no key has the prefix, or one that has it belongs to no layer of this architecture.
    """
    given = _network_keys(state_dict, prefix)
    names = _key_map(count_layers(given, "shared_blocks"), count_layers(given, "u_heads"))
    unknown = sorted(given.keys() - names.keys())
    if unknown:
        raise ValueError(f"{len(unknown)} keys belong to no layer of the MeanFlow network, such as {unknown[0]!r}.")
    converted = {names[key]: value for key, value in given.items()}
    for key in ("patch_in.weight", "patch_in.0.weight", "patch_in.1.weight"):
        if key in converted:
            converted[key] = converted[key].flatten(1)  # a convolution over patches is a linear layer of patches
    for key in _TOKENS.values():
        if key in converted and converted[key].ndim == 3:
            converted[key] = converted[key].squeeze(0)
    sign = 1 if _prediction(given) == "data" else -1
    patch_size = _patch_weight(given).shape[-1]
    for key in ("patch_out.weight", "patch_out.bias"):
        converted[key] = sign * rearrange(converted[key], "(p q c) ... -> (c p q) ...", p=patch_size, q=patch_size)
    return converted


def official_mit_config(state_dict: Mapping[str, Tensor], image_size: int, prefix: str = "net.") -> dict[str, Any]:
    """Arguments of the `MiT` that the weights of a checkpoint (names of the released code) belong to.

    pMF is told by its bottleneck, and is then taken to have rotary positions on the grid, iMF's count the sequence; the
    size of the images leaves no trace in iMF's weights.

    Raises:
        ValueError: no key has the prefix.
    """
    given = _network_keys(state_dict, prefix)
    patch_weight = _patch_weight(given)
    dim = given["class_tokens"].shape[-1]
    prediction = _prediction(given)
    return {
        "image_size": image_size,
        "patch_size": patch_weight.shape[-1],
        "dim": dim,
        "num_layers": count_layers(given, "shared_blocks") + count_layers(given, "u_heads"),
        "num_heads": dim // len(given["u_heads.0.attn.q_norm.weight"]),
        "ffn_dim": len(given["u_heads.0.mlp.w1.linear.weight"]),
        "bottleneck_dim": len(patch_weight) if prediction == "data" else None,
        "num_classes": len(given["y_embedder.embedding_table.embedding.weight"]) - 1,
        "channels": patch_weight.shape[1],
        "num_class_tokens": given["class_tokens"].shape[-2],
        "num_guidance_tokens": given["omega_tokens"].shape[-2],
        "num_interval_tokens": given["t_min_tokens"].shape[-2],
        "num_time_tokens": given["time_tokens"].shape[-2],
        "rotary": "grid" if prediction == "data" else "sequence",
        "learned_positions": "pos_embed" in given,
        "prediction": prediction,
    }


def load_meanflow(path: str | Path, released: str, entry: str = "model") -> MiT:
    """A released pMF or iMF network in evaluation mode; `RELEASED` says how it is called.

    Args:
        path: a ``.pth`` file of FD-loss, or of the code it starts from.
        released: its name in `RELEASED`.
        entry: whose weights, if the file holds several.

    Raises:
        FileNotFoundError: not there.
        KeyError: ``released`` is no name of `RELEASED`.
        ValueError: damaged, another network, or a file that holds more than tensors and plain values.
    """
    if released not in RELEASED:
        raise KeyError(f"there is no released checkpoint {released!r}. Known: {', '.join(RELEASED)}.")
    drawn_as = RELEASED[released]
    state_dict = read_checkpoint(path, entry)
    config = official_mit_config(state_dict, drawn_as.image_size)
    network = MiT(**config, noise_scale=drawn_as.noise_scale)
    load_exactly(network, from_official_mit(state_dict), f"{path} does not hold {released}")
    return network.eval()


@dataclass(frozen=True, kw_only=True)
class MeanFlowCheckpoint:
    """A released pMF or iMF as the generator of a recipe."""

    path: str
    """A ``.pth`` file of FD-loss, or of the code it starts from."""
    released: str
    """Its name in `RELEASED`."""
    entry: str = "model"
    """Whose weights, if the file holds several."""

    def build(self) -> MiT:
        """Raises as `load_meanflow` does."""
        return load_meanflow(self.path, self.released, self.entry)


@dataclass(frozen=True, kw_only=True)
class IMFLatents:
    """The latents that iMF draws in: those of Stable Diffusion's autoencoder, each channel with its own scale."""

    path: str = "stabilityai/sd-vae-ft-mse"
    """A folder or hub id of the AutoencoderKL."""

    def build(self) -> DiffusersAutoencoder:
        """Raises as `load_diffusers_autoencoder` does."""
        space = load_diffusers_autoencoder(self.path)
        space.shift.copy_(torch.tensor(IMF_CHANNEL_MEAN).reshape(-1, 1, 1))
        space.scale.copy_(torch.tensor(IMF_CHANNEL_STD).reshape(-1, 1, 1))
        return space


def _network_keys(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What belongs to the network, in the names of the FD-loss code."""
    return {
        key.replace("._flax_linear.", ".linear.").replace("._flax_embedding.", ".embedding."): value
        for key, value in strip_prefix(state_dict, prefix).items()
        if not key.startswith(_IGNORED)
    }


def _patch_weight(given: Mapping[str, Tensor]) -> Tensor:
    """The convolution that reads the patches."""
    return given["x_embedder.proj1.weight"] if "x_embedder.proj1.weight" in given else given["x_embedder.proj.weight"]


def _prediction(given: Mapping[str, Tensor]) -> Prediction:
    return "data" if "x_embedder.proj1.weight" in given else "velocity"


def _key_map(num_shared: int, num_head: int) -> dict[str, str]:
    """Every key a checkpoint may have -> ours; the blocks of the head go on where the shared ones end."""
    modules = dict(_MODULES)
    for theirs, ours in _SCALARS.items():
        modules |= {f"{theirs}.mlp.0.linear": f"{ours}.first", f"{theirs}.mlp.2.linear": f"{ours}.last"}
    names = dict(_TOKENS)
    blocks = [f"shared_blocks.{layer}" for layer in range(num_shared)] + [
        f"u_heads.{layer}" for layer in range(num_head)
    ]
    for number, block in enumerate(blocks):
        modules |= {f"{block}.{theirs}": f"blocks.{number}.{ours}" for theirs, ours in _BLOCK_MODULES.items()}
        names |= {f"{block}.{theirs}": f"blocks.{number}.{ours}" for theirs, ours in _BLOCK_GATES.items()}
    for theirs, ours in modules.items():
        names |= {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
    return names
