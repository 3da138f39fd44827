"""The public face: every spelling of prompts, seeds, text generation against the slow way, batches against singles."""

import numpy as np
import pytest
import torch
from PIL import Image

from diptych import load
from diptych.data.example import Example, ImageIn, ImageOut, Text
from diptych.unified.drawing import _to_images, draw_features
from diptych.unified.prompts import is_batch, split_batch
from tests.tiny_models import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def pixels(images):
    return [np.asarray(image) for image in images]


# -- spellings ---------------------------------------------------------------------------------------------------------


def test_every_spelling_of_one_prompt_draws_the_same_image(model):
    spellings = ["a red circle", [Text("a red circle")], [["a red circle"]], Text("a red circle")]
    drawn = [pixels(model.generate_image(prompt))[0] for prompt in spellings]
    assert len(drawn) == 4
    for image in drawn[1:]:
        np.testing.assert_array_equal(image, drawn[0])


def test_a_list_of_strings_is_a_batch_for_images_and_one_prompt_for_text(model):
    assert len(model.generate_image(["a red circle", "a blue square"])) == 2
    assert isinstance(model.generate_text(["a red circle", "a blue square"], max_new_tokens=2), str)
    answers = model.generate_text([["a red circle"], ["a blue square"]], max_new_tokens=2)
    assert isinstance(answers, list) and len(answers) == 2


def test_an_image_with_an_instruction_is_one_prompt(model, picture):
    assert len(model.generate_image([picture, "make it blue"])) == 1
    assert len(model.generate_image([[picture, "make it blue"], ["a red circle"]])) == 2
    assert len(model.generate_image([[picture, picture, "both"]], num_images=2)) == 2


def test_a_mixture_of_lists_and_strings_is_refused_with_both_spellings(model):
    with pytest.raises(ValueError, match=r"mix lists .* A batch is a list of lists") as error:
        model.generate_image(["a red circle", ["a blue square"]])
    assert '"a red circle"' in str(error.value)
    with pytest.raises(ValueError, match="mix lists"):
        model.generate_text([["a"], "b"])


def test_rules_of_batches():
    assert not is_batch("a", True) and not is_batch(["a", "b"], False) and is_batch(["a", "b"], True)
    assert is_batch([["a"], ["b"]], False) and not is_batch([Text("a")], True)
    assert [len(parts) for parts in split_batch([["a", "b"], ["c"]], True)] == [2, 1]


@pytest.mark.parametrize("prompt", ["", "   ", [], [[""]], [[]]])
def test_an_empty_prompt_is_refused(model, prompt):
    with pytest.raises(ValueError, match=r"empty|no prompt"):
        model.generate_image(prompt)


def test_a_prompt_of_numbers_is_refused(model):
    with pytest.raises(TypeError, match="holds int"):
        model.generate_text([3])


@pytest.mark.parametrize("prompt", ["🍕 at the beach", "دائرة حمراء فوق مربع", "a\nb\tc"])
def test_unusual_text_is_read(model, prompt):
    assert len(model.generate_image(prompt, num_steps=1)) == 1


def test_a_very_long_prompt_is_refused_by_length(model):
    with pytest.raises(ValueError, match=r"has \d+ text tokens, more than the model's 1024"):
        model.generate_image("red " * 25_000)


# -- images ------------------------------------------------------------------------------------------------------------


def test_seeds_are_numbered_by_prompt_and_image(model):
    together = pixels(model.generate_image(["a red circle", "a blue square"], num_images=2, seed=5))
    for index, (prompt, seed) in enumerate([("a red circle", 5), ("a red circle", 6), ("a blue square", 7),
                                            ("a blue square", 8)]):  # fmt: skip
        alone = pixels(model.generate_image(prompt, seed=seed))[0]
        assert np.abs(alone.astype(int) - together[index]).max() <= 1
    per_prompt = pixels(model.generate_image(["a red circle", "a blue square"], num_images=2, seed=[5, 7]))
    for one, other in zip(together, per_prompt, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="one per prompt"):
        model.generate_image(["a", "b"], seed=[1])


def test_different_seeds_and_prompts_differ(model):
    images = pixels(model.generate_image(["a red circle", "a blue square"], num_images=2))
    assert len({image.tobytes() for image in images}) == 4


def test_features_do_not_depend_on_batch_neighbours_or_padding(model):
    """Within 1e-5 in float32, before quantisation."""
    prompts = ["a red circle", "three brown hearts above a very large and rather lonely blue square", "a"]
    together = model.condition(split_batch(prompts, True), (64, 64))
    for index, prompt in enumerate(prompts):
        alone = model.condition(split_batch(prompt, True), (64, 64))
        torch.testing.assert_close(alone[0], together[index], atol=1e-5, rtol=1e-5)
    noise = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    conditions = torch.stack(together)
    drawn = draw_features(model, conditions, None, None, noise, model.draw_settings)
    for index in range(3):
        one = slice(index, index + 1)
        alone = draw_features(model, conditions[one], None, None, noise[one], model.draw_settings)
        torch.testing.assert_close(alone[0], drawn[index], atol=1e-5, rtol=1e-5)


def test_pictures_do_not_depend_on_neighbours_batch_size_or_padding(picture, monkeypatch):
    """The bundled model from prompt to pixels, thoughts included: within 1e-5 in float32, before quantisation."""
    bundled = load("diptych-scenes", device="cpu", dtype="float32")
    decoded = []
    decode = bundled.autoencoder.decode
    monkeypatch.setattr(bundled.autoencoder, "decode", lambda features: decoded.append(decode(features)) or decoded[-1])

    def drawn(prompts, seeds, batch_size):
        """Decoded pictures; which is which is told by their own pixels."""
        decoded.clear()
        images = bundled.generate_image(prompts, seed=seeds, num_steps=4, batch_size=batch_size)
        values = torch.cat(decoded)
        rows = [np.asarray(image).tobytes() for image in _to_images(values)]
        return torch.stack([values[rows.index(np.asarray(image).tobytes())] for image in images])

    prompts = [["a red circle"], ["three green stars and a large blue square on beige"], [picture, "remove the ring"]]
    seeds = [3, 11, 40]
    alone = torch.cat([drawn([prompt], [seed], "auto") for prompt, seed in zip(prompts, seeds, strict=True)])
    torch.testing.assert_close(drawn(prompts, seeds, 2), alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn(prompts[::-1], seeds[::-1], 3).flip(0), alone, rtol=0, atol=1e-5)


def test_batch_size_changes_nothing(model):
    prompts = ["a red circle", "a blue square", "two green stars"]
    whole, cut = (pixels(model.generate_image(prompts, batch_size=size)) for size in (3, 2))
    for one, other in zip(whole, cut, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


def test_more_prompts_than_are_read_together(model, monkeypatch):
    """In groups of 2 as in one: thoughts by their own seeds, conditions and answers, in the order of the prompts."""
    prompts = [["a red circle"], ["a blue square"], ["two green stars"], ["a"], ["three brown hearts"]]

    def everything():
        written = model.generate_text(prompts, max_new_tokens=5, temperature=1.0, seed=[5, 1, 4, 2, 3])
        conditions = model.condition(split_batch(prompts, True), (64, 64))
        images = model.generate_image(prompts, think=True)
        return written, conditions, [image.info["thought"] for image in images], pixels(images)

    written, conditions, thoughts, images = everything()
    read_alone = []
    monkeypatch.setattr("diptych.unified.text.WRITTEN_TOGETHER", 2)
    monkeypatch.setattr("diptych.unified.drawing.READ_TOGETHER", 2)
    forward = model.forward_for_drawing
    monkeypatch.setattr(model, "forward_for_drawing", lambda batch: read_alone.append(batch.outputs) or forward(batch))
    again = everything()
    assert len(read_alone) == 6  # 2 + 2 + 1 prompts, for the conditions and for the images
    assert again[0] == written and again[2] == thoughts
    for one, other in zip(again[1], conditions, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    for one, other in zip(again[3], images, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


def test_guidance_of_one_equals_the_model_without_null_branch(model):
    condition = torch.stack(model.condition(split_batch("a red circle", True), (64, 64)))
    noise = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    head = model.image_head
    from diptych.unified import DrawSettings

    settings = DrawSettings(num_steps=2, guidance_scale=1.0)
    some, other = (head.draw(condition, null, noise, settings) for null in (condition * 0, condition + 1))
    torch.testing.assert_close(some, other, atol=0, rtol=0)


def test_a_negative_prompt_changes_the_image(model):
    plain, away = (pixels(model.generate_image("a red circle", negative_prompt=n))[0] for n in (None, "a blue square"))
    assert not np.array_equal(plain, away)


def test_on_step_sees_every_step(model):
    seen = []
    model.generate_image("a red circle", num_steps=4, on_step=lambda step: seen.append((step.index, step.data.shape)))
    assert seen == [(i, (1, 8, 4, 4)) for i in (1, 2, 3, 4)]


def test_other_sizes_are_drawn(model):
    image = model.generate_image("a red circle", size=(32, 96))[0]
    assert image.size == (96, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": -1}, "num_steps must be at least 1, got -1"),
        ({"num_images": 0}, "num_images must be at least 1"),
        ({"size": 50}, "size must be positive multiples of 8, got 50x50"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_settings_are_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.generate_image("a red circle", **arguments)


# -- text --------------------------------------------------------------------------------------------------------------


def slow_greedy(model, parts, num_tokens):
    """One full pass per token, without cache."""
    written = []
    for _ in range(num_tokens):
        batch = model.collator()([Example(parts)], open_turn=True)
        length = int((batch.layout.example_ids[0] >= 0).sum())
        embeddings = model.embed(batch)[:, :length]
        if written:
            embeddings = torch.cat([embeddings, model.backbone.embed(torch.tensor([written]))], 1)
        hidden = model.backbone(embeddings, torch.arange(embeddings.shape[1])[None]).hidden_states[:, -1]
        logits = model.backbone.logits(hidden)[0]
        blocked = set(model.tokenizer.special.values()) - {model.tokenizer.special["<|end|>"]}
        logits[sorted(blocked)] = -torch.inf
        token = int(logits.argmax())
        if token == model.tokenizer.special["<|end|>"]:
            break
        written.append(token)
    return model.tokenizer.decode(written)


def test_cached_generation_equals_one_pass_per_token_in_a_batch_of_unequal_prompts(model, picture):
    prompts = [["What?"], [picture, "What shape is the large thing in the middle?"], [picture, picture, "Same?"]]
    answers = model.generate_text(prompts, max_new_tokens=6)
    expected = [slow_greedy(model, split_batch(prompt, False)[0], 6) for prompt in prompts]
    assert answers == expected


def test_streamed_pieces_join_to_the_answer(model, picture):
    for arguments in ({}, {"temperature": 1.0, "seed": 3}, {"stop": ("e",)}):
        whole = model.generate_text([picture, "What is this?"], max_new_tokens=12, **arguments)
        assert "".join(model.stream_text([picture, "What is this?"], max_new_tokens=12, **arguments)) == whole


def test_sampling_follows_its_seed(model):
    texts = [model.generate_text("hello", max_new_tokens=8, temperature=2.0, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_nucleus_of_almost_nothing_is_greedy(model):
    greedy = model.generate_text("hello", max_new_tokens=5)
    assert model.generate_text("hello", max_new_tokens=5, temperature=1.0, top_p=1e-6) == greedy


def test_stop_strings_end_the_answer(model):
    whole = model.generate_text("hello", max_new_tokens=10)
    assert len(whole) > 2
    stopped = model.generate_text("hello", max_new_tokens=10, stop=(whole[2],))
    assert stopped == whole[: whole.index(whole[2])]


def test_log_likelihood_sums_to_the_probability_of_each_token(model):
    answer = "red circle"
    value = model.log_likelihood("What is it?", answer)
    parts = split_batch("What is it?", False)[0]
    example = Example((*parts, Text(answer, role="assistant", is_target=True)))
    batch = model.collator()([example])
    tokens = [*model.tokenizer.encode(answer), model.tokenizer.special["<|end|>"]]
    assert batch.target_ids.tolist() == tokens
    length = int((batch.layout.example_ids[0] >= 0).sum())
    ids = batch.token_ids[0, :length]
    hidden = model.backbone(model.backbone.embed(ids[None]), torch.arange(length)[None]).hidden_states[0]
    log_probabilities = model.backbone.logits(hidden).log_softmax(-1)
    start = length - len(tokens)
    expected = sum(log_probabilities[start - 1 + i, token].item() for i, token in enumerate(tokens))
    assert value == pytest.approx(expected, abs=1e-4)
    both = model.log_likelihood("What is it?", [answer, "no"])
    assert both[0] == pytest.approx(value, abs=1e-4) and both[1] != both[0]


def test_hidden_states_have_one_row_per_token(model):
    states = model.hidden_states("What is it?", [0, 1, 2])
    assert {layer: state.shape for layer, state in states.items()} == dict.fromkeys((0, 1, 2), states[0].shape)
    with pytest.raises(ValueError, match=r"layers must lie in 0\.\.2"):
        model.hidden_states("What is it?", [9])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"temperature": -1.0}, "temperature"), ({"top_p": 0.0}, "top_p"), ({"max_new_tokens": 0}, "max_new_tokens")],
)
def test_bad_text_settings_are_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.generate_text("hello", **arguments)


# -- chat --------------------------------------------------------------------------------------------------------------


def test_chat_answers_as_the_whole_conversation_would(model, picture):
    chat = model.chat()
    first = chat.ask("What is red?", max_new_tokens=4)
    second = chat.ask("And blue?", max_new_tokens=4)
    history = [Text("What is red?"), Text(first, role="assistant"), Text("And blue?")]
    assert second == model.generate_text(history, max_new_tokens=4)
    drawn = chat.draw("a red circle", num_steps=1)
    third = chat.ask("What did you draw?", max_new_tokens=4)
    history += [Text(second, role="assistant"), Text("a red circle"), ImageOut(drawn, is_target=False)]
    assert third == model.generate_text([*history, Text("What did you draw?")], max_new_tokens=4)


def test_a_failed_step_leaves_the_conversation_unchanged(model):
    chat = model.chat()
    chat.ask("hello", max_new_tokens=2)
    before = chat.parts
    with pytest.raises(ValueError):
        chat.ask("hello", max_new_tokens=0)
    with pytest.raises(ValueError):
        chat.draw("a red circle", size=3)
    stream = chat.stream("and now?", max_new_tokens=3)
    next(stream, None)
    stream.close()
    assert chat.parts == before


def test_images_are_shown_in_any_form(model, picture):
    array = np.asarray(picture)
    answers = [model.generate_text([image, "What?"], max_new_tokens=3) for image in (picture, array, ImageIn(array))]
    assert len(set(answers)) == 1
