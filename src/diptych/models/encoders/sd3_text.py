"""The text encoders of Stable Diffusion 3 and 3.5 (arXiv 2403.03206, section 4.2): two CLIPs and, if it is there, T5.

    tokens = [ pad(CLIP-L, CLIP-G side by side) ; T5 ],   pooled = CLIP-L, CLIP-G side by side

CLIP's tokens are of its last layer but one, its pooled output is after the projection. A pipeline without T5, which the
paper allows for, has zeros in the place of its tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.models.denoisers.sd3 import SD3Condition

T5_TOKENS = 256
"""What the released pipeline pads and cuts a prompt to."""


class SD3TextEncoder(nn.Module):
    """Prompts to what `SD3Denoiser` is conditioned on; frozen.

    Args:
        clips, clip_tokenizers: of CLIP-L and CLIP-G (``CLIPTextModelWithProjection`` of transformers).
        t5, t5_tokenizer: None where the pipeline has none.
        dim: width of the denoiser's text tokens.
    """

    def __init__(
        self,
        *,
        clips: Sequence[nn.Module],
        clip_tokenizers: Sequence[Any],
        t5: nn.Module | None,
        t5_tokenizer: Any,
        dim: int,
        num_t5_tokens: int = T5_TOKENS,
    ) -> None:
        super().__init__()
        if len(clips) != 2 or len(clip_tokenizers) != 2:
            raise ValueError(f"two CLIP text encoders with a tokenizer each are needed, got {len(clips)}.")
        self.clips = nn.ModuleList(clips)
        self.t5 = t5
        self.dim = dim
        self.num_t5_tokens = num_t5_tokens
        self._clip_tokenizers = tuple(clip_tokenizers)
        self._t5_tokenizer = t5_tokenizer
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> SD3Condition:
        """The condition of each prompt; longer ones are cut as the released pipeline cuts them."""
        rows, pooled = [], []
        for clip, tokenizer in zip(self.clips, self._clip_tokenizers, strict=True):
            output = clip(self._ids(tokenizer, prompts, tokenizer.model_max_length), output_hidden_states=True)
            rows.append(output.hidden_states[-2])
            pooled.append(output[0])
        tokens = torch.cat(rows, dim=-1)
        tokens = F.pad(tokens, (0, self.dim - tokens.shape[-1]))
        if self.t5 is None:
            long = tokens.new_zeros(len(tokens), self.num_t5_tokens, self.dim)
        else:
            long = self.t5(self._ids(self._t5_tokenizer, prompts, self.num_t5_tokens))[0].to(tokens)
        return SD3Condition(torch.cat((tokens, long), dim=1), torch.cat(pooled, dim=-1))

    def _ids(self, tokenizer: Any, prompts: Sequence[str], length: int) -> Tensor:
        read = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids: Tensor = read.input_ids
        return ids.to(next(self.parameters()).device)
