"""Thoughts before images and answers: what is written, what is returned, and that nothing else changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.data.example import ImageOut, Text
from diptych.evals.contenders import UnifiedContender
from diptych.unified.prompts import split_batch
from diptych.unified.thoughts import with_thoughts
from tests.tiny_models import tiny_model


@pytest.fixture(scope="module")
def model():
    """Random weights, but a thought ends now and then."""
    model = tiny_model()
    model.draw_settings = replace(model.draw_settings, think_temperature=1.5)
    end = model.tokenizer.encode(model.prompt_format.thought_end)[0]
    with torch.no_grad():
        model.backbone.embedding.weight[end] *= 1.5
    return model


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def plan(text):
    return Text(text, role="assistant", is_thought=True)


def test_an_image_is_drawn_from_its_thought_and_tells_it(model):
    (image,) = model.generate_image("a red circle", think=True, seed=3)
    thought = image.info["thought"]
    given = model.generate_image(["a red circle", plan(thought)], seed=3)[0]
    np.testing.assert_array_equal(np.asarray(image), np.asarray(given))
    assert given.info["thought"] == thought
    again = model.generate_image(["a red circle", plan(thought)], think=True, seed=3)[0]
    np.testing.assert_array_equal(np.asarray(again), np.asarray(given))
    other = model.generate_image(["a red circle", plan("c3 small red circle, on beige")], seed=3)[0]
    assert (np.asarray(other) != np.asarray(given)).any()


def test_without_thinking_nothing_changes(model):
    plain = model.generate_image("a red circle")[0]
    assert "thought" not in plain.info
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(model.generate_image("a red circle", think=False)[0]))


def test_every_image_has_the_thought_of_its_own_seed(model):
    together = model.generate_image(["a red circle", "a blue square and a star"], num_images=2, think=True, seed=5)
    thoughts = [image.info["thought"] for image in together]
    alone = [
        model.generate_image(prompt, think=True, seed=seed)[0]
        for prompt, seed in [("a red circle", 5), ("a red circle", 6), ("a blue square and a star", 7)]
    ]
    assert [image.info["thought"] for image in alone] == thoughts[:3]
    assert thoughts[0] != thoughts[1]
    for one, other in zip(alone, together, strict=False):
        difference = np.asarray(one).astype(int) - np.asarray(other)
        assert np.abs(difference).max() <= 1


def test_the_model_thinks_by_habit(model, picture):
    habitual = tiny_model()
    habitual.load_state_dict(model.state_dict())
    habitual.draw_settings = replace(model.draw_settings, think=True)
    assert (
        habitual.generate_image("a red circle")[0].info["thought"]
        == (model.generate_image("a red circle", think=True)[0].info["thought"])
    )
    asked = [picture, "What is it?"]
    assert habitual.generate_text(asked, max_new_tokens=4) == model.generate_text(asked, max_new_tokens=4, think=True)
    assert habitual.generate_text(asked, max_new_tokens=4, think=False) == model.generate_text(asked, max_new_tokens=4)


def test_a_model_may_think_before_it_draws_and_answer_at_once(model, picture):
    habitual = tiny_model()
    habitual.load_state_dict(model.state_dict())
    habitual.draw_settings = replace(model.draw_settings, think=True, think_to_answer=False)
    assert "thought" in habitual.generate_image("a red circle")[0].info
    asked = [picture, "What is it?"]
    at_once, thoughtful = (model.generate_text(asked, max_new_tokens=4, think=think) for think in (False, True))
    assert at_once != thoughtful
    assert habitual.generate_text(asked, max_new_tokens=4) == at_once
    assert habitual.generate_text(asked, max_new_tokens=4, think=True) == thoughtful
    assert "".join(habitual.chat().stream(asked, max_new_tokens=4)) == at_once
    contender = UnifiedContender(habitual, "mine", "fingerprint")
    thinks = [contender.settings(kind, {})["think"] for kind in ("image", "text", "log_likelihood")]
    assert thinks == [True, False, False]


def test_an_answer_follows_its_thought(model, picture):
    asked = [picture, "What is it?"]
    thought = model.think(asked)
    given = [*asked, plan(thought)]
    expected = model.generate_text(given, max_new_tokens=6)
    assert model.generate_text(asked, max_new_tokens=6, think=True) == expected
    assert "".join(model.stream_text(asked, max_new_tokens=6, think=True)) == expected
    values = model.log_likelihood(asked, ["a star", "no"], think=True)
    assert values == pytest.approx(model.log_likelihood(given, ["a star", "no"]), abs=1e-6)
    assert values != pytest.approx(model.log_likelihood(asked, ["a star", "no"]), abs=1e-3)


def test_thoughts_of_a_batch_are_those_of_its_members(model):
    prompts = [["a red circle"], ["two blue squares and a star left of it"]]
    assert model.think(prompts, to_draw=True) == [model.think(prompt, to_draw=True) for prompt in prompts]


def test_prompts_that_end_in_a_thought_keep_it(model):
    requests = split_batch([["a red circle"], ["a star", plan("mine")]], text_batch=False)
    first, second = with_thoughts(model, requests, [0, 1], to_draw=True)
    assert len(first) == 2 and first[1].is_thought
    assert second == requests[1]


def test_a_thought_is_written_until_it_ends_or_is_long_enough(model):
    thought = model.think("a red circle", temperature=1.0, seed=1)
    assert model.prompt_format.thought_end not in thought
    assert len(model.tokenizer.encode(thought)) <= 256


def test_a_conversation_keeps_its_thoughts(model, picture):
    chat = model.chat()
    answer = chat.ask([picture, "What is it?"], max_new_tokens=4, think=True)
    assert [getattr(part, "is_thought", False) for part in chat.parts] == [False, False, True, False]
    assert answer == model.generate_text([*chat.parts[:3]], max_new_tokens=4)
    image = chat.draw("a red circle", think=True)
    assert chat.parts[-2].text == image.info["thought"] and isinstance(chat.parts[-1], ImageOut)
    after = chat.ask("And now?", max_new_tokens=4)
    assert after == model.generate_text(list(chat.parts[:-1]), max_new_tokens=4)


def test_the_habit_survives_saving(model, tmp_path):
    import diptych

    habitual = tiny_model()
    habitual.draw_settings = replace(habitual.draw_settings, think=True, think_temperature=0.4)
    habitual.save(tmp_path / "model")
    assert diptych.load(tmp_path / "model").draw_settings == habitual.draw_settings


def test_a_temperature_below_zero_is_refused(model):
    with pytest.raises(ValueError, match="think_temperature must be 0 or a positive number, got -1"):
        replace(model.draw_settings, think_temperature=-1.0)
