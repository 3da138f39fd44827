"""Drawing by discrete tokens: codes of a picture are written one by one, as text is, before anything is painted.

A head that draws so (`diptych.methods.blip3o_next.TokenFlowHead`) stands in the sequence as one start token and the
tokens of the codes, row by row. Where the codes are known, in training, they are embedded at once; where they are not,
they are sampled here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diptych.data.batch import Batch, ImageGroup
from diptych.data.example import Example, ImageOut, Part
from diptych.data.shuffle import derive_key
from diptych.unified.text import read

if TYPE_CHECKING:
    from diptych.unified.model import UnifiedModel


class TokenHead(Protocol):
    """What a head offers that draws by tokens, beside what every image head does."""

    num_codes: int
    num_tokens: int
    token_sampling: "TokenSettings"
    reads_codes: bool
    """Images that are looked at stand as the tokens of their codes, not as features behind a connector."""
    sees_latents: bool
    """Latents of the picture that is edited are used, in the condition or beside the noise."""

    def token_ids(self, codes: Int[Tensor, "images written"]) -> Int[Tensor, "images written+1"]:
        """Ids of the start token and of the codes written so far."""
        ...

    def condition(
        self, hidden_states: Float[Tensor, "images queries dim"], latents: Float[Tensor, "images _ _ _"] | None
    ) -> Float[Tensor, "images conditions condition_dim"]:
        """What the denoiser reads; ``latents`` are those of the picture that is edited."""
        ...

    def code_logits(self, backbone: Any, hidden_states: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows codes"]:
        """Logits of the next code, all other tokens left out."""
        ...


@dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """How codes are sampled; as BLIP3o-NEXT's released inference does unless said otherwise."""

    temperature: float = 1.0
    """0 takes the likeliest code."""
    top_p: float = 0.95
    """Smallest set of codes whose probabilities reach it, among those that ``top_k`` leaves."""
    top_k: int = 1200
    """At most so many codes, the likeliest, whose probabilities then sum to one; 0 for all."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"token_sampling.temperature must be at least 0, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"token_sampling.top_p must lie in (0, 1], got {self.top_p}.")
        if self.top_k < 0:
            raise ValueError(f"token_sampling.top_k must be at least 0 (0 for all), got {self.top_k}.")


POLICY = TokenSettings(temperature=1.0, top_p=1.0, top_k=0)
"""The distribution itself, which policy gradients are about."""


@dataclass(frozen=True)
class SampledCodes:
    """Codes of images, and the hidden states that come with them.

    Attributes:
        hidden_states: at the start token and at every code: what the denoiser is conditioned on.
    """

    codes: Int[Tensor, "images tokens"]
    hidden_states: Float[Tensor, "images queries dim"]


def draws_by_tokens(head: Any) -> bool:
    """Whether an image head is a `TokenHead`."""
    return hasattr(head, "token_ids")


@torch.inference_mode()
def sample_codes(
    model: "UnifiedModel",
    requests: Sequence[tuple[Part, ...]],
    size: tuple[int, int],
    seeds: Sequence[int],
    settings: TokenSettings | None = None,
) -> SampledCodes:
    """Writes the codes of one image after each prompt.

    Args:
        size: (height, width) of the images in pixels.
        seeds: one an image; its codes depend on its prompt and seed alone.
        settings: the head's own when absent.
    """
    head = model.image_head
    settings = head.token_sampling if settings is None else settings
    examples = [Example((*parts, ImageOut(size=size)), key=f"prompt {i}") for i, parts in enumerate(requests)]
    collator = model.collator()
    collator = replace(collator, rules=replace(collator.rules, num_queries=1))
    batch = collator(examples).to(model.device)
    batch = with_codes(batch, [None] * len(batch.outputs))
    state = read(model, batch)
    numbers = torch.stack([_uniform(seed, head.num_tokens) for seed in seeds]).to(model.device)
    written, hidden_states = [], [state.hidden]
    for number in numbers.unbind(1):
        codes = choose_codes(head.code_logits(model.backbone, state.hidden), number, settings)
        written.append(codes)
        state = state.advance(model, head.token_ids(codes[:, None])[:, 1])
        hidden_states.append(state.hidden)
    return SampledCodes(torch.stack(written, dim=1), torch.stack(hidden_states, dim=1))


def with_codes(batch: Batch, codes: Sequence[Int[Tensor, "images tokens"] | None]) -> Batch:
    """The batch whose drawn images have these codes, a tensor for each group; None stands for none written yet."""
    groups = tuple(
        replace(group, codes=group.slots.new_zeros((len(group), 0)) if own is None else own)
        for group, own in zip(batch.outputs, codes, strict=True)
    )
    return replace(batch, outputs=groups)


def reference_latents(
    model: "UnifiedModel", batch: Batch, group: ImageGroup
) -> list[Float[Tensor, "channels rows cols"] | None]:
    """For every image of a drawn group, the last picture before it in its example, in the generation space.

    It is what an edit starts from. None where no picture stands before.
    """
    latest: list[tuple[int, int, int] | None] = [None] * len(group)
    firsts = group.slots[:, 0].tolist()
    examples = group.example_ids.tolist()
    for number, seen in enumerate(batch.inputs):
        for row, (slot, example) in enumerate(zip(seen.slots[:, 0].tolist(), seen.example_ids.tolist(), strict=True)):
            for i, (first, own) in enumerate(zip(firsts, examples, strict=True)):
                before = latest[i]
                if example == own and slot < first and (before is None or slot > before[0]):
                    latest[i] = (slot, number, row)
    encoded: dict[int, Tensor] = {}
    for number in {place[1] for place in latest if place is not None}:
        images = batch.inputs[number].images
        if images is None:
            raise ValueError(
                "editing reads the pictures of a prompt in two ways, so they cannot come as cached features."
            )
        with torch.no_grad():
            encoded[number] = model.encode_outputs(images)
    return [None if place is None else encoded[place[1]][place[2]] for place in latest]


def prompt_latents(
    model: "UnifiedModel", requests: Sequence[tuple[Part, ...]], size: tuple[int, int]
) -> list[Float[Tensor, "channels rows cols"] | None]:
    """`reference_latents` of an image after each prompt."""
    examples = [Example((*parts, ImageOut(size=size)), key=f"prompt {i}") for i, parts in enumerate(requests)]
    batch = model.collator()(examples).to(model.device)
    found: dict[int, Tensor | None] = {}
    for group in batch.outputs:
        found.update(zip(group.example_ids.tolist(), reference_latents(model, batch, group), strict=True))
    return [found[index] for index in range(len(requests))]


def choose_codes(
    logits: Float[Tensor, "images codes"], numbers: Float[Tensor, " images"], settings: TokenSettings
) -> Int[Tensor, " images"]:
    """The codes that uniform numbers in [0, 1) fall on, among the likeliest that the settings leave."""
    if settings.temperature == 0:
        return logits.argmax(-1)
    ordered, codes = (logits.float() / settings.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    if settings.top_k:
        ordered[:, settings.top_k :] = 0
        ordered = ordered / ordered.sum(-1, keepdim=True)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= settings.top_p, 0)
    reached = ordered.cumsum(-1)
    place = (reached <= numbers[:, None] * reached[:, -1:]).sum(-1)
    last = (ordered > 0).sum(-1) - 1  # where rounding leads beyond the codes that are left
    return codes.gather(-1, torch.minimum(place, last)[:, None]).squeeze(-1)


def _uniform(seed: int, count: int) -> Float[Tensor, " count"]:
    """Drawn on the CPU, so that devices agree; not the numbers that the image's noise is made of."""
    return torch.rand(count, generator=torch.Generator().manual_seed(derive_key(seed, "codes") >> 1))
