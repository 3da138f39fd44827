"""Small LLaMA models in the layout of llama2.c: ``config.json`` and ``model.safetensors`` with Meta's key names."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.models.backbones.transformer import CausalTransformer


def load_llama2c(folder: str | Path) -> CausalTransformer:
    """The model of a folder. Rotary pairs are neighbouring channels there as here, so rows keep their order.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the weights do not fit the configuration.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"llama2.c model: {folder / name} is missing.")
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    tied = bool(config["tied_embeddings"])
    model = CausalTransformer(
        vocab_size=config["vocab_size"],
        dim=config["dim"],
        num_layers=config["n_layers"],
        num_heads=config["n_heads"],
        num_kv_heads=config["n_kv_heads"],
        ffn_dim=config["hidden_dim"],
        rope_theta=config["rope_theta"],
        norm_eps=config["norm_eps"],
        tie_embeddings=tied,
        max_position=config["max_seq_len"],
    )
    try:
        model.load_state_dict(_our_keys(weights, model.num_layers, tied))
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"llama2.c model: the weights of {folder} do not fit its config.json: {error}") from error
    return model


def _our_keys(weights: dict[str, Tensor], num_layers: int, tied: bool) -> dict[str, Tensor]:
    ours = {"embedding.weight": weights["tok_embeddings.weight"], "norm.weight": weights["norm.weight"]}
    if not tied:
        ours["head.weight"] = weights["output.weight"]
    for index in range(num_layers):
        block, theirs = f"blocks.{index}", f"layers.{index}"
        projections = [weights[f"{theirs}.attention.w{name}.weight"] for name in "qkv"]
        ours |= {
            f"{block}.attention_norm.weight": weights[f"{theirs}.attention_norm.weight"],
            f"{block}.attention.qkv.weight": torch.cat(projections),
            f"{block}.attention.out.weight": weights[f"{theirs}.attention.wo.weight"],
            f"{block}.ffn_norm.weight": weights[f"{theirs}.ffn_norm.weight"],
            f"{block}.feed_forward.gate.weight": weights[f"{theirs}.feed_forward.w1.weight"],
            f"{block}.feed_forward.down.weight": weights[f"{theirs}.feed_forward.w2.weight"],
            f"{block}.feed_forward.up.weight": weights[f"{theirs}.feed_forward.w3.weight"],
        }
    return ours
