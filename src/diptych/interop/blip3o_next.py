"""The published parts that BLIP3o-NEXT (arXiv 2510.15857) is put together from, as configs.

``weights`` is a folder or hub id; None builds the part at its published size with random weights. What the authors
trained is read by `diptych.interop.blip3o_next_folder`.
"""

from dataclasses import dataclass
from typing import Any, Literal

QWEN3: dict[str, dict[str, int]] = {
    "0.6B": {"hidden_size": 1024, "num_hidden_layers": 28, "intermediate_size": 3072, "num_attention_heads": 16},
    "1.7B": {"hidden_size": 2048, "num_hidden_layers": 28, "intermediate_size": 6144, "num_attention_heads": 16},
}
"""Sizes of Qwen3; both have 8 key heads of 128 and share the table of tokens with the output."""

SIGLIP2_SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}

DC_AE_F32C32: dict[str, Any] = {
    "in_channels": 3,
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "upsample_block_type": "interpolate",
    "downsample_block_type": "conv",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "scaling_factor": 0.41407,
}

SANA_1_6B: dict[str, Any] = {
    "channels": 32,
    "condition_dim": 2304,
    "dim": 2240,
    "num_layers": 20,
    "num_heads": 70,
    "num_cross_heads": 20,
    "qk_norm": True,
}


@dataclass(frozen=True, kw_only=True)
class Qwen3:
    """The language model, with image tokens behind its own."""

    size: Literal["0.6B", "1.7B"] = "1.7B"
    """Their scripts name 0.6B; the released 3B has room for 1.7B beside SANA (inferred)."""
    weights: str | None = "Qwen/Qwen3-1.7B"
    """Folder or hub id; None for random weights."""

    def build(self, vocab_size: int) -> Any:
        from diptych.models.backbones.grow import with_more_tokens
        from diptych.models.backbones.transformers_lm import TransformersBackbone, load_backbone

        if self.weights is not None:
            loaded = load_backbone(self.weights)
            return with_more_tokens(loaded, max(vocab_size, loaded.vocab_size))
        config = {
            **QWEN3[self.size],
            "model_type": "qwen3",
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40960,
            "rope_theta": 1_000_000.0,
            "tie_word_embeddings": True,
            "vocab_size": vocab_size,
        }
        return TransformersBackbone(config=config)


@dataclass(frozen=True, kw_only=True)
class SigLip2:
    """The vision encoder whose features TA-Tok quantises."""

    weights: str | None = "google/siglip2-so400m-patch14-384"
    """Folder or hub id; None for random weights."""

    def build(self) -> Any:
        from diptych.models.encoders.huggingface import HuggingFaceEncoder, load_huggingface_encoder

        if self.weights is not None:
            return load_huggingface_encoder(self.weights)
        return HuggingFaceEncoder(model_config=SIGLIP2_SO400M)


@dataclass(frozen=True, kw_only=True)
class DeepCompression:
    """DC-AE: 32 channels for 32 x 32 pixels."""

    weights: str | None = "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers"
    """Folder or hub id; None for random weights."""

    def build(self) -> Any:
        from diptych.models.autoencoders.diffusers import DiffusersAutoencoder, load_diffusers_autoencoder

        if self.weights is not None:
            return load_diffusers_autoencoder(self.weights)
        return DiffusersAutoencoder(model_class="AutoencoderDC", model_config=DC_AE_F32C32)


@dataclass(frozen=True, kw_only=True)
class Sana15:
    """SANA 1.5 of 1.6 B parameters."""

    weights: str | None = "Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers"
    """Folder or hub id of the whole pipeline; None for random weights."""

    def build(self, channels: int) -> Any:
        from diptych.interop.sana import from_diffusers_sana, sana_config
        from diptych.interop.weight_files import load_exactly
        from diptych.models.denoisers.sana import SanaTransformer

        if channels != SANA_1_6B["channels"]:
            raise ValueError(f"SANA paints latents of {SANA_1_6B['channels']} channels, got {channels}. Use its DC-AE.")
        if self.weights is None:
            return SanaTransformer(**SANA_1_6B)
        from diffusers import SanaTransformer2DModel

        theirs: Any = SanaTransformer2DModel.from_pretrained(self.weights, subfolder="transformer")
        network = SanaTransformer(**sana_config(theirs.config))
        load_exactly(network, from_diffusers_sana(theirs.state_dict()), self.weights)
        return network
