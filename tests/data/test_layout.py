"""Spans, packing and the mask derived from them."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from diptych.data.layout import SequenceLayout, Span, SpanKind, assign_rows, pack_layouts


def text(length, is_target=False):
    return Span(SpanKind.TEXT, length, tuple(range(1, length + 1)), is_target)


def image(rows, columns, **rules):
    return Span(SpanKind.IMAGE, rows * columns, image=0, grid=(rows, columns), **rules)


def queries(length, number=0, **rules):
    return Span(SpanKind.QUERY, length, image=number, **rules)


def drawing_start(length, number=0):
    """Tokens before the queries of an image, which only those see."""
    return Span(SpanKind.TEXT, length, tuple(range(1, length + 1)), image=number, is_hidden=True)


LAYOUTS = [
    SequenceLayout((text(3), image(2, 2), text(4, True))),
    SequenceLayout((text(5), queries(4, is_full=True, is_hidden=True), image(2, 2, is_full=True), text(2))),
    SequenceLayout((text(1),)),
    SequenceLayout((text(7), queries(3, is_hidden=True))),
    SequenceLayout((text(2), drawing_start(2), queries(3, is_hidden=True), image(1, 2), text(2), drawing_start(1, 1),
                    queries(2, number=1, is_full=True, is_hidden=True))),
    SequenceLayout((text(2), drawing_start(1), queries(3, is_hidden=True))),
]  # fmt: skip


def allowed_by_hand(layout, query, key):
    """The rule of the module's docstring, span by span."""
    spans = [span for span in layout.spans for _ in range(span.length)]
    number = [i for i, span in enumerate(layout.spans) for _ in range(span.length)]
    same = number[query] == number[key]
    same_drawing = spans[query].is_hidden and spans[query].image == spans[key].image
    in_reach = key <= query or (same and spans[query].is_full)
    return in_reach and (same or same_drawing or not spans[key].is_hidden)


@pytest.mark.parametrize("row_length", [None, 12, 16, 64])
def test_mask_follows_the_rule_inside_every_example_and_nothing_leaks_between(row_length):
    packed, places = pack_layouts(LAYOUTS, row_length)
    mask = packed.mask()
    expected = torch.zeros_like(mask)
    for layout, (row, start) in zip(LAYOUTS, places, strict=True):
        for query, key in itertools.product(range(layout.length), repeat=2):
            expected[row, start + query, start + key] = allowed_by_hand(layout, query, key)
    assert torch.equal(mask, expected)
    assert mask.sum() > 100


def test_dense_mask_equals_the_mask_of_flex_attention():
    packed, _ = pack_layouts(LAYOUTS, 24)
    rows, length = packed.kinds.shape

    def mask_mod(batch, head, query, key):
        return packed.allows(query, key, batch)

    flex = create_mask(mask_mod, rows, 1, length, length, device="cpu")
    assert torch.equal(flex[:, 0], packed.mask())


def test_plain_causal_is_claimed_exactly_where_it_holds():
    for layout in LAYOUTS:
        packed, _ = pack_layouts([layout])
        present = packed.example_ids[0] >= 0
        causal = torch.ones(layout.length, layout.length, dtype=torch.bool).tril()
        is_causal = torch.equal(packed.mask()[0][present][:, present], causal)
        assert packed.is_plain_causal == is_causal
    assert not pack_layouts([LAYOUTS[0], LAYOUTS[2]], 64)[0].is_plain_causal


def test_rows_hold_every_sequence_once_and_never_overflow():
    lengths = [5, 9, 3, 3, 7, 12, 1, 8, 8, 2]
    for row_length in (None, 4, 12, 20, 100):
        rows = assign_rows(lengths, row_length)
        assert sorted(itertools.chain.from_iterable(rows)) == list(range(len(lengths)))
        if row_length is not None:
            assert all(sum(lengths[i] for i in row) <= max(row_length, 12) for row in rows)
    assert len(assign_rows([64] * 10, 128)) == 5


def test_positions_in_one_and_three_dimensions():
    layout = LAYOUTS[0]
    assert layout.positions(1) == [(i,) for i in range(11)]
    three = layout.positions(3)
    assert three[:3] == [(0, 0, 0), (1, 1, 1), (2, 2, 2)]
    assert three[3:7] == [(3, 3, 3), (3, 3, 4), (3, 4, 3), (3, 4, 4)]
    assert three[7:] == [(i,) * 3 for i in range(5, 9)]  # goes on after the largest index of the image


@pytest.mark.parametrize("axes", [1, 3])
def test_what_follows_goes_on_as_if_the_hidden_were_not_there(axes):
    layout = LAYOUTS[4]
    positions = [row[0] for row in layout.positions(axes)]
    assert positions[:7] == [0, 1, 2, 3, 4, 5, 6]  # text, start, queries
    assert [place for place, span in zip(positions, [s for s in layout.spans for _ in range(s.length)], strict=True)
            if not span.is_hidden] == [row[0] for row in SequenceLayout(
                tuple(span for span in layout.spans if not span.is_hidden)).positions(axes)]  # fmt: skip
    packed, _ = pack_layouts([layout], axes=axes)
    assert packed.positions.reshape(layout.length, -1)[:, 0].tolist() == positions


def test_bad_spans_are_refused():
    with pytest.raises(ValueError, match="at least one position"):
        Span(SpanKind.QUERY, 0)
    with pytest.raises(ValueError, match="3 positions was given 2 tokens"):
        Span(SpanKind.TEXT, 3, (1, 2))


@pytest.mark.parametrize(("shortest", "longest"), [(20, 80), (60, 250)])
@pytest.mark.parametrize("num", [16, 64, 256])
def test_rows_of_the_published_recipes_waste_little(num, shortest, longest):
    """Prompts of BLIP3-o's short and long captions with template and 64 queries, in rows of 1,024: at most 5 %."""
    rng = np.random.default_rng(num)
    shares = []
    for _ in range(20):
        lengths = (rng.integers(shortest, longest + 1, num) + 74).tolist()
        rows = assign_rows(lengths, 1024)
        assert sorted(index for row in rows for index in row) == list(range(num))
        used = max(sum(lengths[index] for index in row) for row in rows)
        assert used <= 1024
        shares.append(1 - sum(lengths) / (len(rows) * used))
    assert np.mean(shares) < 0.05
