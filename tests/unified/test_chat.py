"""A conversation: what was read once is not read again, and every answer is that of the whole conversation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.data.example import Example, ImageIn, ImageOut, Text, load_pixels
from diptych.data.layout import SpanKind
from diptych.data.sources.scenes import ScenesSource
from diptych.train.part_configs import VitConfig
from tests.tiny_models import TINY, tiny_model

OWN_EYES = replace(TINY, encoder=VitConfig(dim=32, num_layers=1, num_heads=2, patch_size=16))


def noise_picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module", params=["features are looked at", "an encoder of its own"])
def model(request):
    return tiny_model(config=TINY if request.param.startswith("features") else OWN_EYES)


@pytest.fixture
def work(model, monkeypatch):
    """How many positions the backbone reads and how many images are encoded."""
    counts = {"positions": 0, "images": 0}

    def count_positions(module, arguments):
        counts["positions"] += arguments[0].shape[1]

    encode = model.encode_inputs

    def count_images(images):
        counts["images"] += len(images)
        return encode(images)

    handle = model.backbone.register_forward_pre_hook(count_positions)
    monkeypatch.setattr(model, "encode_inputs", count_images)
    yield counts
    handle.remove()


def length_of(model, parts) -> int:
    return len(model.hidden_states(list(parts), [0])[0])


def test_answers_about_images_are_those_of_the_whole_conversation(model, work):
    first, second = noise_picture(1), noise_picture(2)
    chat = model.chat()
    history, answers = [], []
    for said in (["Hello."], [first, "What is it?"], ["And now?"], [second, "The same?"], ["Sure?"]):
        work["images"] = work["positions"] = 0
        answers.append(chat.ask(said, max_new_tokens=3))
        history += [Text(part) if isinstance(part, str) else ImageIn(part) for part in said]
        assert work["images"] == sum(not isinstance(part, str) for part in said)  # only those that are new
        fresh = model.generate_text(history, max_new_tokens=3)
        assert answers[-1] == fresh
        history.append(Text(answers[-1], role="assistant"))
    assert len(chat.parts) == len(history) == 12


def test_only_what_is_new_is_read(model, work):
    chat = model.chat()
    chat.ask([noise_picture(1), "What is it? " * 20], max_new_tokens=1)
    before = length_of(model, chat.parts)
    work["positions"] = 0
    chat.ask("And now?", max_new_tokens=1)
    num_read = work["positions"]
    new = length_of(model, chat.parts[:-1]) - before
    assert new <= num_read < new + 8 < before  # the last answer and the question; a few tokens open turns


def test_states_read_in_pieces_are_those_read_at_once(model):
    chat = model.chat()
    chat.ask([noise_picture(1), "What is it?"], max_new_tokens=3)
    parts = (*chat.parts, ImageIn(noise_picture(2)), Text("And this?"))
    pieces, _ = chat._advance(parts)
    whole, _ = model.chat()._advance(parts)
    torch.testing.assert_close(pieces.hidden, whole.hidden, atol=1e-5, rtol=1e-5)
    assert torch.equal(pieces.next_positions, whole.next_positions)


def test_pictures_drawn_in_between_are_part_of_it(model):
    chat = model.chat()
    chat.ask("Hello.", max_new_tokens=2)
    drawn = chat.draw("a red circle", num_steps=1)
    again = chat.draw("make it blue", num_steps=1)
    assert [type(part) for part in chat.parts] == [Text, Text, Text, ImageOut, Text, ImageOut]
    alone = model.generate_image([*chat.parts[:4], "make it blue"], num_steps=1)[0]
    np.testing.assert_array_equal(np.asarray(again), np.asarray(alone))
    answer = chat.ask("What did you draw?", max_new_tokens=3)
    assert answer == model.generate_text(list(chat.parts[:-1]), max_new_tokens=3)
    assert drawn.size == (64, 64)


def test_a_failed_question_changes_nothing_that_comes_after(model):
    chat, other = model.chat(), model.chat()
    picture = noise_picture(1)
    for c in (chat, other):
        c.ask([picture, "What is it?"], max_new_tokens=3)
    stream = chat.stream([noise_picture(2), "And this one here?"], max_new_tokens=5)
    next(stream)
    stream.close()
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        chat.ask("And this?", max_new_tokens=0)
    with pytest.raises(ValueError, match="a conversation goes on with one image: leave num_images out"):
        chat.draw("a red circle", num_images=2)
    assert chat.parts == other.parts
    assert chat.ask("And this?", max_new_tokens=4) == other.ask("And this?", max_new_tokens=4)


def seen(layout_batch, position):
    """What a position of the only example sees: tokens or kinds, with their places, in order."""
    layout = layout_batch.layout
    keys = layout.mask()[0, position].nonzero()[:, 0]
    return [(layout.kinds[0, k].item(), layout_batch.token_ids[0, k].item(), layout.positions[0, k].item())
            for k in keys]  # fmt: skip


@torch.no_grad()
def test_a_conversation_that_draws_edits_and_asks_is_laid_out_as_in_training(model, monkeypatch):
    """What decides a drawing or an answer sees the same tokens at the same places in training and in a chat."""
    source = ScenesSource(task="interleaved", num_scenes=20).build()
    example = source.example(3)
    words, first, instruction, second, question, _ = example.parts
    trained = model.collator()([example])
    states = model(trained).hidden_states.flatten(0, 1)

    pictures, asked, read = iter([first, second]), [], []

    def draw(prompt, **settings):
        asked.append(prompt)
        return [Image.fromarray(load_pixels(next(pictures).image))]

    monkeypatch.setattr(model, "generate_image", draw)
    embed = model.embed
    monkeypatch.setattr(model, "embed", lambda batch: read.append(batch) or embed(batch))
    chat = model.chat()
    chat.draw(words.text)
    chat.draw(instruction.text)
    chat.ask(question.text, max_new_tokens=1)

    drawings = sorted(slots.tolist() for group in trained.outputs for slots in group.slots)
    for prompt, slots in zip(asked, drawings, strict=True):
        shown = model.collator()([Example((*prompt, ImageOut(size=(64, 64))))])
        (queries,) = shown.outputs[0].slots.tolist()
        for ours, theirs in zip(slots, queries, strict=True):
            assert seen(trained, ours) == seen(shown, theirs)
        torch.testing.assert_close(states[slots], model(shown).hidden_states[0, queries], rtol=1e-4, atol=1e-5)

    turn = next(batch for batch in read if len(batch.outputs) == 0)  # the question, with all before it
    before_answer = int(trained.target_slots[0])
    last = int((turn.layout.example_ids[0] >= 0).sum()) - 1
    assert seen(trained, before_answer) == seen(turn, last)
    assert sum(kind == SpanKind.IMAGE for kind, _, _ in seen(turn, last)) > 0
    expected = model(turn).hidden_states[0, last]
    torch.testing.assert_close(states[before_answer], expected, rtol=1e-4, atol=1e-5)
