"""From parts to one sequence: the spans of an example, packing into rows, and the attention mask that follows.

A *span* is a run of positions of one kind that shares an attention rule. The mask is derived from the spans alone:
position i may attend to position j when both belong to the same example, and j comes no later than i or lies in the
same span with full attention, and j's span is not hidden from i's.

What is hidden also takes no positions: what follows goes on where it began, as if it were not there. So a conversation
reads the same whether its drawings are learnt (their queries stand in the sequence) or were drawn before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor


class SpanKind(IntEnum):
    """What occupies a position of the sequence."""

    PADDING = -1
    TEXT = 0
    IMAGE = 1
    """Features of an image that the model looks at."""
    QUERY = 2
    """Learnable queries, whose hidden states become the condition of a denoiser."""


@dataclass(frozen=True)
class Span:
    """A run of positions.

    Attributes:
        kind: what occupies them.
        length: number of positions, at least 1.
        token_ids: the tokens of a text span, as many as ``length``.
        is_target: text that the model learns to write.
        weight: factor on the loss of such text.
        image: which image of the example an image or query span belongs to.
        grid: (rows, columns) of an image span; gives it positions in two dimensions where the backbone has them.
        is_full: every position of the span attends to the whole span, not only to what comes before.
        is_hidden: later spans do not see this one, but hidden spans of the same image right behind it do.
    """

    kind: SpanKind
    length: int
    token_ids: tuple[int, ...] = ()
    is_target: bool = False
    image: int | None = None
    grid: tuple[int, int] | None = None
    is_full: bool = False
    is_hidden: bool = False
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"a span needs at least one position, got {self.length}.")
        if self.kind == SpanKind.TEXT and len(self.token_ids) != self.length:
            raise ValueError(f"a text span of {self.length} positions was given {len(self.token_ids)} tokens.")


@dataclass(frozen=True)
class SequenceLayout:
    """The spans of one example, in order."""

    spans: tuple[Span, ...]

    @property
    def length(self) -> int:
        return sum(span.length for span in self.spans)

    @property
    def is_plain_causal(self) -> bool:
        """Whether an ordinary causal mask is right: no full span, and nothing hidden that a later span could see."""
        ends = [_is_hidden_behind(self.spans, i) for i in range(1, len(self.spans))]
        ends_hidden = any(span.is_hidden and not goes_on for span, goes_on in zip(self.spans, ends, strict=False))
        return not any(span.is_full for span in self.spans) and not ends_hidden

    def positions(self, axes: int) -> list[tuple[int, ...]]:
        """The position of every token, as one index or, for multimodal rotary positions, (time, row, column).

        Text advances all axes together; an image span stands at one time and spreads over rows and columns; what
        follows goes on after the largest index used (Qwen2-VL, arXiv 2409.12191, section 2.1). What follows a hidden
        span goes on where that began.
        """
        result: list[tuple[int, ...]] = []
        start = hidden_start = 0
        for index, span in enumerate(self.spans):
            if span.is_hidden:
                first = hidden_start if _is_hidden_behind(self.spans, index) else start
                result += [(first + i,) * axes for i in range(span.length)]
                hidden_start = first + span.length
            elif axes == 3 and span.kind == SpanKind.IMAGE and span.grid is not None:
                rows, columns = span.grid
                result += [(start, start + row, start + column) for row in range(rows) for column in range(columns)]
                start += max(rows, columns)
            else:
                result += [(start + i,) * axes for i in range(span.length)]
                start += span.length
        return result


def _is_hidden_behind(spans: Sequence[Span], index: int) -> bool:
    """Whether a hidden span stands right behind another one of the same image, and thus sees it."""
    before, span = spans[index - 1], spans[index]
    return index > 0 and before.is_hidden and span.is_hidden and before.image == span.image


def assign_rows(lengths: Sequence[int], row_length: int | None) -> list[list[int]]:
    """Which sequences share a row. ``row_length=None`` gives each its own row.

    Otherwise there are as few rows of at most ``row_length`` positions (or as many as the longest sequence, if that is
    more) as longest-first into the first row with room needs (first-fit decreasing), and their lengths are as equal as
    longest-first into the emptiest row makes them, since rows are padded to the longest. Rows, and the sequences in a
    row, are then put back into the order of the input.
    """
    if row_length is None:
        return [[i] for i in range(len(lengths))]
    capacity = max(row_length, *lengths)
    longest_first = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    rows: list[list[int]] = []
    used: list[int] = []
    for index in longest_first:
        row = next((row for row, length in enumerate(used) if length + lengths[index] <= capacity), len(rows))
        if row == len(rows):
            rows.append([])
            used.append(0)
        rows[row].append(index)
        used[row] += lengths[index]
    level: list[list[int]] = [[] for _ in rows]
    heights = [0] * len(rows)
    for index in longest_first:
        row = heights.index(min(heights))
        level[row].append(index)
        heights[row] += lengths[index]
    return sorted(sorted(row) for row in (level if max(heights) <= max(used) else rows))


@dataclass(frozen=True)
class PackedLayout:
    """Several layouts side by side in rows of equal length, as tensors.

    Attributes:
        kinds: a ``SpanKind`` for every position.
        example_ids: which example a position belongs to; -1 in padding.
        span_ids: numbers the spans of a row; hidden spans of one image that stand together share a number.
        is_full, is_hidden: the attention rule of the position's span.
        positions: for the backbone's rotary embedding; the last axis is absent for one-dimensional positions.
        is_plain_causal: a causal mask gives the same result, so none needs to be built.
    """

    kinds: Int[Tensor, "rows seq"]
    example_ids: Int[Tensor, "rows seq"]
    span_ids: Int[Tensor, "rows seq"]
    is_full: Bool[Tensor, "rows seq"]
    is_hidden: Bool[Tensor, "rows seq"]
    positions: Int[Tensor, "rows seq"] | Int[Tensor, "rows seq axes"]
    is_plain_causal: bool

    def allows(self, query: Tensor, key: Tensor, row: Tensor) -> Tensor:
        """The attention rule for index tensors that broadcast; also the ``mask_mod`` of FlexAttention."""
        same_example = (self.example_ids[row, query] == self.example_ids[row, key]) & (self.example_ids[row, key] >= 0)
        same_span = self.span_ids[row, query] == self.span_ids[row, key]
        in_reach = (key <= query) | (same_span & self.is_full[row, query])
        return same_example & in_reach & (same_span | ~self.is_hidden[row, key])

    def mask(self) -> Bool[Tensor, "rows seq seq"]:
        """The dense attention mask, True where the second-to-last index may attend to the last."""
        rows, length = self.kinds.shape
        index = torch.arange(length, device=self.kinds.device)
        row = torch.arange(rows, device=self.kinds.device)[:, None, None]
        return self.allows(index[:, None], index[None, :], row)


def pack_layouts(
    layouts: Sequence[SequenceLayout], row_length: int | None = None, axes: int = 1, pad_multiple: int = 1
) -> tuple[PackedLayout, list[tuple[int, int]]]:
    """Packs layouts into rows; also returns (row, first position) of every layout.

    Args:
        row_length: positions in a row; ``None`` puts every layout in a row of its own.
        axes: of the positions, 1 or 3.
        pad_multiple: rows are padded to a multiple of it (few shapes are kind to compilers).
    """
    rows = assign_rows([layout.length for layout in layouts], row_length)
    length = max(sum(layouts[i].length for i in row) for row in rows)
    length = -(-length // pad_multiple) * pad_multiple
    shape = (len(rows), length)
    kinds = np.full(shape, int(SpanKind.PADDING), dtype=np.int64)
    example_ids = np.full(shape, -1, dtype=np.int64)
    span_ids = np.full(shape, -1, dtype=np.int64)
    is_full = np.zeros(shape, dtype=np.bool_)
    is_hidden = np.zeros(shape, dtype=np.bool_)
    positions = np.zeros((*shape, axes), dtype=np.int64)
    places: list[tuple[int, int]] = [(0, 0)] * len(layouts)
    for row, members in enumerate(rows):
        start = span_number = 0
        for index in members:
            layout = layouts[index]
            places[index] = (row, start)
            end = start + layout.length
            positions[row, start:end] = layout.positions(axes)
            example_ids[row, start:end] = index
            for number, span in enumerate(layout.spans):
                span_number += not _is_hidden_behind(layout.spans, number)
                here = slice(start, start + span.length)
                kinds[row, here] = span.kind
                span_ids[row, here] = span_number
                is_full[row, here] = span.is_full
                is_hidden[row, here] = span.is_hidden
                start += span.length
    packed = PackedLayout(
        kinds=torch.from_numpy(kinds),
        example_ids=torch.from_numpy(example_ids),
        span_ids=torch.from_numpy(span_ids),
        is_full=torch.from_numpy(is_full),
        is_hidden=torch.from_numpy(is_hidden),
        positions=torch.from_numpy(positions[..., 0].copy() if axes == 1 else positions),
        is_plain_causal=all(len(row) == 1 for row in rows) and all(layout.is_plain_causal for layout in layouts),
    )
    return packed, places
