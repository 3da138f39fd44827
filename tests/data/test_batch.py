"""Batches: what is learnt at which position, where images stand, who sees the queries, features instead of pixels."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.data.batch import Collator
from diptych.data.example import Example, ImageIn, ImageOut, LazyImage, Text
from diptych.data.feature_cache import FeatureCache
from diptych.data.layout import SpanKind
from diptych.data.prompt_format import ImageRules, PromptFormat, compact_format
from diptych.models.preprocess import to_float
from diptych.train.part_configs import TokenizerConfig
from tests.tiny_models import tiny_model

CELL = 16


def plain(level: int, height: int = 32, width: int = 32) -> np.ndarray:
    """A picture of one grey, so that it can be recognised in a batch."""
    return np.full((height, width, 3), level, np.uint8)


def grid(height: int, width: int) -> tuple[int, int]:
    return height // CELL, width // CELL


def as_it_is(pixels: np.ndarray, is_output: bool) -> torch.Tensor:
    return to_float(pixels)


@pytest.fixture(scope="module")
def tokenizer():
    return TokenizerConfig().build()


def make_collator(tokenizer, full_queries=False, **changes) -> Collator:
    rules = ImageRules(grid, num_queries=3, full_queries=full_queries)
    values = {"prompt_format": compact_format(), "prepare": as_it_is, "pixels_per_cell": (CELL, CELL)}
    return Collator(tokenizer=tokenizer, rules=rules, **{**values, **changes})


def answer(text: str) -> Text:
    return Text(text, role="assistant", is_target=True)


EXAMPLES = (
    Example((ImageIn(plain(10)), Text("What is it?"), answer("a large star")), key="asked", weight=2.0),
    Example((Text("a red circle"), ImageOut(plain(20))), key="drawn"),
    Example((Text("Hi"), answer("Ho"), Text("Again"), answer("Ho ho, 42!")), key="chat", weight=0.5),
    Example((ImageIn(plain(30, 64, 32)), ImageIn(plain(40)), Text("swap"), ImageOut(plain(50, 64, 32))), key="edit"),
    Example((Text("Tell"), answer("Once"), ImageOut(plain(60)), answer("and then"), ImageOut(plain(70))), key="story"),
)
LEARNT = {0: ["a large star<|end|>"], 2: ["Ho<|end|>", "Ho ho, 42!<|end|>"], 4: ["Once", "and then"]}


def level_of(image: torch.Tensor) -> int:
    return round((float(image.mean()) + 1) * 127.5)


# -- text --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row_length", [None, 64, 200])
def test_every_target_is_the_next_token_and_ends_of_turns_are_learnt(tokenizer, row_length):
    batch = make_collator(tokenizer, row_length=row_length)(EXAMPLES)
    assert (batch.layout.kinds.shape[0] == len(EXAMPLES)) == (row_length is None)
    tokens, kinds, owners = (
        value.flatten() for value in (batch.token_ids, batch.layout.kinds, batch.layout.example_ids)
    )
    assert torch.equal(tokens[batch.target_slots + 1], batch.target_ids)
    assert torch.equal(owners[batch.target_slots], batch.target_examples)
    assert torch.equal(owners[batch.target_slots + 1], batch.target_examples)
    assert (kinds[batch.target_slots + 1] == SpanKind.TEXT).all()
    assert len(set(batch.target_slots.tolist())) == len(batch.target_slots)
    end = tokenizer.special["<|end|>"]
    for index in range(len(EXAMPLES)):
        ids = batch.target_ids[batch.target_examples == index].tolist()
        expected = []
        for text in LEARNT.get(index, []):
            expected += tokenizer.encode(text.removesuffix("<|end|>")) + [end] * text.endswith("<|end|>")
        assert ids == expected
    assert len(batch.target_ids) > 15


def test_what_precedes_a_target_is_seen_by_it(tokenizer):
    """The position whose next token is learnt never is a query, which later positions do not see."""
    batch = make_collator(tokenizer, row_length=300)(EXAMPLES)
    assert not (batch.layout.kinds.flatten()[batch.target_slots] == SpanKind.QUERY).any()


def test_the_first_token_of_an_example_has_nothing_to_be_predicted_from(tokenizer):
    collator = make_collator(tokenizer, prompt_format=PromptFormat(), row_length=100)
    batch = collator([Example((answer("one two"),)), Example((answer("three four five"),))])
    ids = [tokenizer.encode(text) for text in ("one two", "three four five")]
    assert batch.layout.kinds.shape[0] == 1 and min(map(len, ids)) > 1
    assert batch.target_ids.tolist() == ids[0][1:] + ids[1][1:]
    assert torch.equal(batch.token_ids.flatten()[batch.target_slots + 1], batch.target_ids)
    assert batch.target_examples.tolist() == [0] * (len(ids[0]) - 1) + [1] * (len(ids[1]) - 1)


def test_weights_and_seeds_are_those_of_the_examples(tokenizer):
    batch = make_collator(tokenizer)(EXAMPLES, seeds=[5, 4, 3, 2, 2**63 - 1])
    assert batch.example_weights.tolist() == [2.0, 1.0, 0.5, 1.0, 1.0]
    assert batch.example_seeds.tolist() == [5, 4, 3, 2, 2**63 - 1]
    assert make_collator(tokenizer)(EXAMPLES).example_seeds.tolist() == [0] * 5
    assert batch.num_examples == 5 and batch.num_tokens == batch.token_ids.numel()


def test_the_weight_of_a_text_is_that_of_its_tokens_alone(tokenizer):
    asked = (Text("What is it?"), Text("a plan", role="assistant", is_target=True, is_thought=True))
    heavy = Text("a large star", role="assistant", is_target=True, weight=3.0)
    batch = make_collator(tokenizer)(
        [Example((*asked, heavy), weight=0.5), Example((Text("Hi", weight=7.0), answer("Ho")))]
    )
    weights = {0: [], 1: []}
    for token, example, weight in zip(batch.target_ids, batch.target_examples, batch.target_weights, strict=True):
        weights[int(example)].append((tokenizer.decode([int(token)]), float(weight)))
    plan, star = tokenizer.encode("a plan\n"), tokenizer.encode("a large star")
    assert [weight for _, weight in weights[0]] == [0.5] * len(plan) + [1.5] * len(star) + [0.5]
    assert {weight for _, weight in weights[1]} == {1.0}


def test_rows_are_padded_to_a_multiple(tokenizer):
    for multiple in (1, 8, 32):
        batch = make_collator(tokenizer, pad_multiple=multiple)(EXAMPLES)
        assert batch.token_ids.shape[1] % multiple == 0
        padding = batch.layout.example_ids < 0
        assert torch.equal(padding, batch.layout.kinds == SpanKind.PADDING)
        assert (batch.token_ids[padding] == 0).all()


# -- images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row_length", [None, 64, 200])
def test_every_image_stands_where_its_part_is(tokenizer, row_length):
    """Read along the row, the images of an example come in the order of its parts."""
    batch = make_collator(tokenizer, row_length=row_length)(EXAMPLES)
    kinds, owners = batch.layout.kinds.flatten(), batch.layout.example_ids.flatten()
    found = []
    for groups, kind in ((batch.inputs, SpanKind.IMAGE), (batch.outputs, SpanKind.QUERY)):
        taken = torch.cat([group.slots.flatten() for group in groups])
        assert sorted(taken.tolist()) == (kinds == kind).nonzero().flatten().tolist()
        for group in groups:
            height, width = group.size
            assert group.images.shape[2:] == (height, width)
            assert group.slots.shape[1] == (3 if kind == SpanKind.QUERY else height * width // CELL**2)
            for image, slots, example in zip(group.images, group.slots, group.example_ids.tolist(), strict=True):
                assert torch.equal(slots, slots[0] + torch.arange(len(slots)))
                assert (owners[slots] == example).all()
                found.append((example, int(slots[0]), kind.name, level_of(image)))
    in_order = {n: [entry[2:] for entry in sorted(found) if entry[0] == n] for n in range(len(EXAMPLES))}
    assert in_order == {
        0: [("IMAGE", 10)],
        1: [("QUERY", 20)],
        2: [],
        3: [("IMAGE", 30), ("IMAGE", 40), ("QUERY", 50)],
        4: [("QUERY", 60), ("IMAGE", 60), ("QUERY", 70)],  # a drawn image is read by what follows it
    }


def test_images_of_one_size_are_one_group(tokenizer):
    batch = make_collator(tokenizer)(EXAMPLES)
    sizes = {"inputs": Counter({(32, 32): 3, (64, 32): 1}), "outputs": Counter({(32, 32): 3, (64, 32): 1})}
    for name, expected in sizes.items():
        groups = getattr(batch, name)
        assert Counter({group.size: len(group) for group in groups}) == expected and len(groups) == 2


def test_an_image_is_prepared_once_for_each_use(tokenizer):
    calls = []

    def counting(pixels, is_output):
        calls.append((int(pixels[0, 0, 0]), is_output))
        return to_float(pixels)

    make_collator(tokenizer, prepare=counting)(EXAMPLES)
    expected = [(10, False), (20, True), (30, False), (40, False), (50, True), (60, True), (60, False), (70, True)]
    assert Counter(calls) == Counter(expected)


def attention(batch, row=0):
    return batch.layout.mask()[row]


@pytest.mark.parametrize("full_queries", [False, True])
def test_queries_see_the_prompt_and_nothing_later_sees_them(tokenizer, full_queries):
    batch = make_collator(tokenizer, full_queries=full_queries)([EXAMPLES[4]])
    mask, kinds = attention(batch), batch.layout.kinds[0]
    first, second = (group_slots.tolist() for group in batch.outputs for group_slots in group.slots)
    for queries in (first, second):
        inside = mask[queries][:, queries]
        expected = torch.ones(3, 3, dtype=torch.bool) if full_queries else torch.ones(3, 3).tril().bool()
        assert torch.equal(inside, expected)
        own = batch.layout.span_ids[0] == batch.layout.span_ids[0, queries[0]]  # with the token that starts the drawing
        before = [i for i in range(queries[0]) if own[i] or not batch.layout.is_hidden[0, i]]
        assert before and mask[queries][:, before].all() and mask[queries, queries[0] - 1].all()
    after_first = [i for i in range(first[-1] + 1, len(kinds)) if kinds[i] != SpanKind.PADDING]
    assert len(after_first) > 7 and not mask[after_first][:, [first[0] - 1, *first]].any()
    features = [i for i in range(first[-1], second[0]) if kinds[i] == SpanKind.IMAGE]
    assert len(features) == 4 and mask[second][:, features].all()


def test_a_prompt_that_ends_in_queries_needs_no_mask(tokenizer):
    collator = make_collator(tokenizer)
    assert collator([EXAMPLES[0], EXAMPLES[1], EXAMPLES[3]]).layout.is_plain_causal
    assert not collator([EXAMPLES[4]]).layout.is_plain_causal
    assert not make_collator(tokenizer, full_queries=True)([EXAMPLES[1]]).layout.is_plain_causal
    assert not make_collator(tokenizer, row_length=200)(EXAMPLES[:2]).layout.is_plain_causal


def test_positions_in_three_axes_spread_images_over_rows_and_columns(tokenizer):
    batch = make_collator(tokenizer, position_axes=3)([EXAMPLES[3]])
    (tall,) = [group for group in batch.inputs if group.size == (64, 32)]
    positions = batch.layout.positions[0][tall.slots[0]]
    start = int(positions[0, 0])
    expected = [[start, start + row, start + column] for row in range(4) for column in range(2)]
    assert positions.tolist() == expected
    after = batch.layout.positions[0][int(tall.slots[0, -1]) + 1]
    assert after.tolist() == [start + 4] * 3


# -- features that were kept -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def keyed(level: int, read=None) -> LazyImage:
    noise = np.random.default_rng(level).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return LazyImage(f"picture/{level}", read or (lambda: noise))


def gone():
    raise AssertionError("an image with kept features was read")


def of_all_kinds(image) -> list[Example]:
    return [
        Example((ImageIn(image(1)), Text("What?"), answer("a star"))),
        Example((Text("draw"), ImageOut(image(2)))),
        Example((ImageIn(image(1)), Text("edit"), ImageOut(image(3)), answer("done"))),
    ]


def test_kept_features_give_what_fresh_pixels_give_and_the_images_are_not_read(model):
    cache = FeatureCache()
    handles = [keyed(level) for level in (1, 2, 3)]
    images = torch.stack([model.images.prepare(handle.load(), True) for handle in handles])
    with torch.no_grad():
        cache.add(("output", "input"), [handle.key for handle in handles], model.encode_outputs(images))
        fresh = model.collator()(of_all_kinds(keyed))
        kept = model.collator(cache)(of_all_kinds(lambda level: keyed(level, gone)))
        assert all(group.images is None for group in (*kept.inputs, *kept.outputs))
        assert [group.size for group in kept.inputs] == [group.size for group in fresh.inputs] == [(64, 64)]
        assert torch.equal(kept.token_ids, fresh.token_ids) and torch.equal(kept.layout.kinds, fresh.layout.kinds)
        for one, other in zip((*kept.inputs, *kept.outputs), (*fresh.inputs, *fresh.outputs), strict=True):
            assert torch.equal(one.slots, other.slots) and torch.equal(one.example_ids, other.example_ids)
        torch.testing.assert_close(model(kept).hidden_states, model(fresh).hidden_states, atol=1e-5, rtol=1e-5)
        for one, other in zip(kept.outputs, fresh.outputs, strict=True):
            torch.testing.assert_close(model.group_features(one, True), model.group_features(other, True))


def test_kept_and_fresh_images_share_a_batch(model):
    cache = FeatureCache()
    with torch.no_grad():
        pixels = model.images.prepare(keyed(1).load(), True)[None]
        cache.add(("input",), ["picture/1"], model.encode_inputs(pixels))
        mixed = model.collator(cache)(of_all_kinds(keyed))
        fresh = model.collator()(of_all_kinds(keyed))
        assert [group.images is None for group in mixed.inputs] == [True, False]  # picture 3 is looked at, once drawn
        assert all(group.features is None for group in mixed.outputs)
        torch.testing.assert_close(model(mixed).hidden_states, model(fresh).hidden_states, atol=1e-5, rtol=1e-5)


def test_a_collator_travels_to_a_worker_process(model):
    collator = model.collator(FeatureCache())
    assert len(pickle.dumps(collator)) < 200_000  # no weights
    there = pickle.loads(pickle.dumps(collator))
    one, other = collator(EXAMPLES[:2]), there(EXAMPLES[:2])
    assert torch.equal(one.token_ids, other.token_ids)
    assert torch.equal(one.inputs[0].images, other.inputs[0].images)


def test_a_batch_moves_as_a_whole(tokenizer):
    batch = make_collator(tokenizer)(EXAMPLES).to("meta")
    tensors = [batch.token_ids, batch.layout.positions, batch.target_slots, batch.example_seeds]
    tensors += [value for group in (*batch.inputs, *batch.outputs) for value in (group.images, group.slots)]
    assert len(tensors) == 12 and all(tensor.device.type == "meta" for tensor in tensors)
    assert batch.inputs[0].features is None and batch.inputs[0].size == (32, 32)


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_an_image_without_pixels_is_named_with_its_example(tokenizer):
    """What is no image at all is refused by type checks here; ``tests/test_bad_input.py`` has the messages."""
    nothing = np.zeros((0, 8, 3), np.uint8)
    with pytest.raises(
        ValueError, match=r"example 'set/7': pixels must be a uint8 array of .* got uint8 of \(0, 8, 3\)"
    ):
        make_collator(tokenizer)([Example((ImageIn(nothing), Text("What?")), key="set/7")])


def test_a_file_that_is_cut_off_is_named_with_its_example(tokenizer, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with Image.open(tmp_path / "a.png") as cut, pytest.raises(ValueError, match=r"example 'a': .*truncated"):
        make_collator(tokenizer)([Example((ImageIn(cut), Text("What?")), key="a")])


def test_an_image_to_be_drawn_needs_a_size(tokenizer):
    with pytest.raises(ValueError, match=r"example 'a': an ImageOut without an image needs a size \(height, width\)"):
        make_collator(tokenizer)([Example((Text("draw"), ImageOut()), key="a")])
