"""BLIP3-o's generation space as the field of a recipe: EVA-CLIP's pooled features and Emu2's decoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diptych.models.autoencoders.rendered_features import RenderedFeatures


@dataclass(frozen=True, kw_only=True)
class EvaFeaturesConfig:
    """Averages over 4 x 4 of EVA-CLIP-E/14+'s patches at 448 pixels: 8 x 8 features of 1792 channels."""

    encoder_file: str
    """``pytorch_model.bin`` of ``jiuhai/eva_clip_vision_tower``."""
    decoder: str
    """Folder of BLIP3o-Model-4B or -8B, of which ``diffusion-decoder`` is read."""

    def build(self) -> "RenderedFeatures":
        """The frozen space. What its decoder's guidance leads away from is zeros, not yet features of a blank prompt.

        Raises:
            FileNotFoundError: one of them is missing.
            ValueError: one of them is damaged or another network.
        """
        from diptych.interop.blip3o_decoder import load_decoder
        from diptych.interop.eva_clip import load_eva_clip

        if not Path(self.encoder_file).is_file():
            raise FileNotFoundError(
                f"{self.encoder_file} is missing: it is pytorch_model.bin of jiuhai/eva_clip_vision_tower, whose "
                "features are drawn. Name it with --model.features.encoder-file."
            )
        encoder = load_eva_clip(self.encoder_file)
        pool = 4
        side = encoder.image_size // encoder.patch_size // pool
        space = load_decoder(Path(self.decoder), encoder.dim, (side, side), pool, encoder, "cpu", None)
        return space.requires_grad_(False).eval()
