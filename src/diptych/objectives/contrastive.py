"""Contrastive losses that pull matching pictures and texts together: CLIP's softmax and SigLIP's sigmoid.

Features need not be normalised; both losses use cosines. Temperatures are tensors, learned or fixed, and enter as
their logarithm. Where a batch holds the same text or picture twice, ``matches`` says so; otherwise the pairs match.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

MAX_LOG_SCALE = 4.6052
"""log(100), at which CLIP holds its scale."""


def cosine_logits(
    images: Float[Tensor, "batch dim"], texts: Float[Tensor, "batch dim"], log_scale: Float[Tensor, ""]
) -> Float[Tensor, "batch batch"]:
    """``exp(log_scale) * cosine`` of every picture (rows) with every text (columns), in float32 (autocast or not)."""
    with torch.autocast(images.device.type, enabled=False):
        cosines = F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
        return log_scale.float().exp() * cosines


def clip_loss(
    images: Float[Tensor, "batch dim"],
    texts: Float[Tensor, "batch dim"],
    log_scale: Float[Tensor, ""],
    matches: Bool[Tensor, "batch batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Symmetric InfoNCE of each pair, the mean of picture -> text and text -> picture.

    CLIP, arXiv 2103.00020, figure 3. ``log_scale`` starts at log(1 / 0.07) in the paper and acts up to log(100). With
    ``matches`` the target of a row is spread evenly over what matches it.
    """
    logits = cosine_logits(images, texts, log_scale.clamp(max=MAX_LOG_SCALE))
    if matches is None:
        target = torch.arange(len(logits), device=logits.device)
        return (
            F.cross_entropy(logits, target, reduction="none") + F.cross_entropy(logits.T, target, reduction="none")
        ) / 2
    positive = matches.float()
    return (
        F.cross_entropy(logits, positive / positive.sum(1, keepdim=True), reduction="none")
        + F.cross_entropy(logits.T, positive.T / positive.T.sum(1, keepdim=True), reduction="none")
    ) / 2


def siglip_loss(
    images: Float[Tensor, "batch dim"],
    texts: Float[Tensor, "batch dim"],
    log_scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    matches: Bool[Tensor, "batch batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Sigmoid loss of each picture, summed over all texts (SigLIP, arXiv 2303.15343, equation 1).

    ``log_scale`` starts at log(10) and ``bias`` at -10 in the paper.
    """
    logits = cosine_logits(images, texts, log_scale) + bias.float()
    if matches is None:
        matches = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    signs = torch.where(matches, 1.0, -1.0)
    return -F.logsigmoid(signs * logits).sum(1)
