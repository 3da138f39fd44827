"""Word noise: inputs change by their share, targets never, drawn examples not at all, and nothing by neighbours."""

from dataclasses import replace

import pytest
import torch

from diptych.data.sources.scenes import ScenesSource
from diptych.methods.blip3o import Blip3oConfig, Blip3oObjectives
from diptych.objectives.word_noise import _order_in_example, with_word_noise
from tests.tiny_models import tiny_model

TELL = ScenesSource(task="image_to_text", caption_style="layout", num_scenes=100)
DRAW = ScenesSource(task="text_to_image", caption_style="short", num_scenes=100, thinks=True)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def batch_of(model, examples, seeds, row_length=None):
    return model.collator(row_length=row_length)(examples, seeds)


def test_a_share_of_what_is_read_is_replaced_and_no_target(model):
    source = TELL.build()
    batch = batch_of(model, [source.example(i, 0) for i in range(60)], list(range(60)))
    noised = with_word_noise(batch, 0.3, model.tokenizer.vocab_size)
    changed = (noised.token_ids != batch.token_ids).flatten().nonzero().flatten()
    assert set(changed.tolist()) <= set((batch.target_slots + 1).tolist())
    assert len(changed) / len(batch.target_ids) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(noised.target_ids, batch.target_ids)
    assert torch.equal(with_word_noise(batch, 0.0, model.tokenizer.vocab_size).token_ids, batch.token_ids)
    assert noised.token_ids.max() < model.tokenizer.vocab_size


def test_the_thought_that_a_picture_is_drawn_from_stays(model):
    tell, draw = TELL.build(), DRAW.build()
    examples = [tell.example(0, 0), draw.example(1, 0), tell.example(2, 0)]
    batch = batch_of(model, examples, [5, 6, 7])
    noised = with_word_noise(batch, 0.9, model.tokenizer.vocab_size)
    is_changed = (noised.token_ids != batch.token_ids).any(1)
    assert is_changed.tolist() == [True, False, True]
    assert (batch.target_examples == 1).any()  # it is learnt all the same


def test_noise_follows_from_the_example_alone(model):
    source = TELL.build()
    examples = [source.example(i, 0) for i in range(4)]
    vocab = model.tokenizer.vocab_size
    packed = with_word_noise(batch_of(model, examples, [1, 2, 3, 4], row_length=256), 0.5, vocab)
    read = packed.token_ids.flatten()[packed.target_slots + 1]
    for index, example in enumerate(examples):
        alone = with_word_noise(batch_of(model, [example], [index + 1]), 0.5, vocab)
        expected = alone.token_ids.flatten()[alone.target_slots + 1]
        assert torch.equal(read[packed.target_examples == index], expected)
    order = _order_in_example(torch.tensor([2, 2, 2, 0, 0, 1]))
    assert order.tolist() == [0, 1, 2, 0, 1, 0]


def test_an_objective_takes_it(model):
    batch = batch_of(model, [TELL.build().example(i, 0) for i in range(3)], [1, 2, 3])
    plain, same, noised = (
        Blip3oObjectives(word_noise=share).joint(model, batch, torch.Generator())["text"].sum.item()
        for share in (0.0, 0.0, 0.5)
    )
    assert plain == same != noised


def test_examples_without_targets(model):
    batch = batch_of(model, [replace(DRAW, thinks=False).build().example(0, 0)], [1])
    assert not len(batch.target_ids)
    assert torch.equal(with_word_noise(batch, 0.5, model.tokenizer.vocab_size).token_ids, batch.token_ids)


def test_a_share_is_one():
    with pytest.raises(ValueError, match=r"model.word_noise must be a share from 0 to 1, got 1.5"):
        Blip3oConfig(word_noise=1.5)
