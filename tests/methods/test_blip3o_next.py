"""BLIP3o-NEXT: which rows predict and condition what, drawing token by token, and what an edit sees."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import diptych
from diptych.data.example import ImageOut, Text
from diptych.data.sources.scenes import ScenesSource
from diptych.methods.blip3o_next import Blip3oNextConfig, Blip3oNextObjectives, with_null
from diptych.train.part_configs import (
    BackboneConfig,
    FeaturesConfig,
    SanaConfig,
    TextAlignedTokenizerConfig,
    VitConfig,
)
from diptych.unified import DrawSettings
from diptych.unified.tokens import (
    POLICY,
    TokenSettings,
    choose_codes,
    prompt_latents,
    reference_latents,
    sample_codes,
    with_codes,
)

TINY = Blip3oNextConfig(
    image_tokenizer=TextAlignedTokenizerConfig(
        encoder=VitConfig(dim=32, num_layers=1, num_heads=2), num_codes=12, code_dim=4, pool=4, decoder_layers=1
    ),
    features=FeaturesConfig(
        encoder=VitConfig(dim=32, num_layers=1, num_heads=2), channels=8, decoder_dim=32, decoder_layers=1,
        decoder_heads=2,
    ),
    backbone=BackboneConfig(dim=32, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=64, residual_init=1.0),
    denoiser=SanaConfig(dim=32, condition_dim=24, num_layers=2, num_heads=2, num_cross_heads=2),
)  # fmt: skip


def tiny_next(seed=0, **changes):
    torch.manual_seed(seed)
    model = replace(TINY, **changes).build()
    model.draw_settings = DrawSettings(num_steps=3, guidance_scale=2.0)
    return model.eval()


def examples(task, count=2, **options):
    source = ScenesSource(task=task, num_scenes=20, **options).build()
    return [source.example(i, 0) for i in range(count)]


def joint(model, chosen, seeds=None, row_length=None, **changes):
    batch = model.collator(row_length=row_length)(chosen, seeds or list(range(len(chosen))))
    return Blip3oNextObjectives(**changes).joint(model, batch, torch.Generator())


@pytest.fixture(scope="module", params=[("features", ()), ("codes", ("condition",)), ("codes", ("condition", "noise"))])
def model(request):
    reads, references = request.param
    return tiny_next(reads=reads, references=references)


def test_tokens_are_learnt_from_the_position_before_each_of_them(model):
    """By hand: embed the prompt and the tokens one after the other, without any of the batch's machinery."""
    example = examples("text_to_image", 1)[0]
    found = joint(model, [example])["tokens"]
    head, image = model.image_head, example.parts[-1].image
    codes = model.encoder.codes(model.images.prepare(image.load(), True)[None])
    assert codes.shape == (1, 4) and head.num_queries == 5
    batch = model.collator()([without_image(example)])
    prompt = batch.token_ids[0, : int((batch.layout.example_ids[0] >= 0).sum())]
    starts = [model.tokenizer.special[name] for name in ("<|assistant|>", "<|draw|>")]
    first = model.tokenizer.vocab_size
    ids = torch.cat([prompt, torch.tensor([*starts, first]), first + 1 + codes[0]])
    hidden = model.backbone(model.backbone.embed(ids[None]), torch.arange(len(ids))[None]).hidden_states[0]
    loss = F.cross_entropy(model.backbone.logits(hidden[-5:-1]), ids[-4:], reduction="sum")
    torch.testing.assert_close(found.sum, loss, rtol=1e-5, atol=1e-5)
    assert found.count == 4


def without_image(example):
    return replace(example, parts=example.parts[:-1])


def test_sampled_hidden_states_are_those_of_one_pass_over_the_sampled_tokens(model):
    prompts = [(Text("a red circle"),), (Text("two blue squares above a star"),)]
    sampled = sample_codes(model, prompts, (64, 64), [3, 4])
    assert sampled.codes.shape == (2, 4) and sampled.hidden_states.shape == (2, 5, 32)
    wanted = [replace(examples("text_to_image", 1)[0], parts=(*p, ImageOut(size=(64, 64)))) for p in prompts]
    batch = model.collator()(wanted)
    output = model(with_codes(batch, [sampled.codes]))
    again = output.hidden_states.flatten(0, 1)[batch.outputs[0].slots]
    torch.testing.assert_close(sampled.hidden_states, again, rtol=1e-4, atol=1e-5)


def test_codes_depend_on_prompt_and_seed_alone(model):
    prompts = [(Text(words),) for words in ("a red circle", "two blue squares above a star", "a ring")]
    together = sample_codes(model, prompts, (64, 64), [5, 6, 7]).codes
    alone = [sample_codes(model, [p], (64, 64), [s]).codes[0] for p, s in zip(prompts, (5, 6, 7), strict=True)]
    assert torch.equal(together, torch.stack(alone))
    assert len({tuple(sample_codes(model, prompts[:1], (64, 64), [s]).codes[0].tolist()) for s in range(8)}) > 4


def test_codes_are_chosen_as_often_as_their_probability():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(4000, 4)
    numbers = (torch.arange(4000) + 0.5) / 4000
    counts = torch.bincount(choose_codes(logits, numbers, POLICY), minlength=4) / 4000
    torch.testing.assert_close(counts, torch.tensor([0.4, 0.3, 0.2, 0.1]), atol=1e-3, rtol=0)
    nucleus = torch.bincount(choose_codes(logits, numbers, TokenSettings(top_p=0.65, top_k=0)), minlength=4) / 4000
    torch.testing.assert_close(nucleus, torch.tensor([4 / 7, 3 / 7, 0.0, 0.0]), atol=1e-3, rtol=0)
    two = choose_codes(logits, numbers, TokenSettings(top_p=1.0, top_k=1))
    assert set(two.tolist()) == {0}
    assert set(choose_codes(logits, numbers, TokenSettings(temperature=0.0)).tolist()) == {0}


@pytest.mark.parametrize(
    "settings", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}], ids=["temperature", "top_p", "top_k"]
)
def test_bad_sampling_is_refused(settings):
    with pytest.raises(ValueError, match=f"token_sampling.{next(iter(settings))} must"):
        TokenSettings(**settings)


def test_flow_reads_the_rows_of_the_tokens_alone(model):
    """The gradient of the flow loss reaches the words and the tokens; dropped, it reaches neither."""
    chosen = examples("text_to_image")
    for drop, reaches in ((0.0, True), (1.0, False)):
        model.zero_grad()
        joint(model, chosen, condition_drop=drop)["flow"].sum.backward()
        found = model.backbone.embedding.weight.grad
        assert (found is not None and float(found.abs().max()) > 0) == reaches


def test_packed_equals_unpacked(model):
    chosen = [*examples("text_to_image"), *examples("image_edit"), *examples("question_answering")]
    unpacked, packed = (joint(model, chosen, row_length=length) for length in (None, 160))
    assert set(packed) == {"text", "tokens", "flow"}
    for name in packed:
        torch.testing.assert_close(packed[name].sum, unpacked[name].sum, rtol=1e-5, atol=1e-5)
        assert packed[name].count == unpacked[name].count


def test_an_edit_starts_from_the_last_picture_before_it():
    model = tiny_next(references=("condition",))
    chosen = examples("multi_reference", 1) + examples("text_to_image", 1)
    batch = model.collator()(chosen)
    seen = [part.image.load() for part in chosen[0].parts if not isinstance(part, Text)][:-1]
    expected = model.encode_outputs(model.images.prepare(seen[-1], False)[None])[0]
    found = [own for group in batch.outputs for own in reference_latents(model, batch, group)]
    torch.testing.assert_close(found[0], expected)
    assert found[1] is None


def test_the_picture_changes_what_is_drawn_only_where_references_say_so():
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    for reads, references in (("codes", ()), ("codes", ("condition",)), ("codes", ("noise",))):
        model = tiny_next(reads=reads, references=references)
        constant = torch.zeros(1, model.image_head.num_tokens, dtype=torch.int64)
        model.encoder.codes = lambda images, c=constant: c.expand(len(images), -1)  # the tokens say nothing
        drawn = [np.asarray(model.generate_image([image, "make it green"], seed=1)[0]) for image in (red, blue)]
        assert np.array_equal(*drawn) == (not references)


def test_batches_of_edits_and_drawings_give_each_what_it_gets_alone(model):
    red = Image.new("RGB", (64, 64), "red")
    prompts = [["a circle"], [red, "make it blue"], ["a blue star above a ring"]]
    together = model.generate_image(prompts, seed=[1, 2, 3])
    for prompt, seed, image in zip(prompts, (1, 2, 3), together, strict=True):
        alone = np.asarray(model.generate_image([prompt], seed=[seed])[0]).astype(int)
        assert np.abs(alone - np.asarray(image)).max() <= 1


def test_an_edit_at_another_size_is_refused_where_it_stands_beside_the_noise():
    model = tiny_next(references=("noise",))
    with pytest.raises(ValueError, match="a picture is edited at its own size: got latents of"):
        model.generate_image([Image.new("RGB", (64, 64)), "make it blue"], size=128)


def test_the_null_condition_has_zeros_for_the_picture():
    condition, null = torch.ones(2, 5, 3), torch.full((2, 3, 3), 2.0)
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    both, counts = with_null(condition, mask, null)
    assert both[2:].sum(-1).tolist() == [[6.0, 6.0, 6.0, 0.0, 0.0]] * 2
    assert torch.equal(counts, torch.cat([mask, mask]))


def test_a_model_reads_writes_draws_and_survives_its_folder(model, tmp_path):
    assert model.capabilities == ("text", "image_to_text", "text_to_image", "image_edit")
    red = Image.new("RGB", (64, 64), "red")
    model.save(tmp_path / "model")
    again = diptych.load(tmp_path / "model", device="cpu")
    assert again.generate_text([red, "what is it?"], max_new_tokens=4) == model.generate_text(
        [red, "what is it?"], max_new_tokens=4
    )
    for prompt in (["a circle"], [red, "make it blue"]):
        first, second = (m.generate_image(prompt, num_images=2, seed=5) for m in (model, again))
        assert [np.array_equal(a, b) for a, b in zip(first, second, strict=True)] == [True, True]
        assert not np.array_equal(first[0], first[1])


def test_no_image_token_is_ever_written_as_text():
    model = tiny_next()
    with torch.no_grad():
        model.backbone.embedding.weight[model.tokenizer.vocab_size :] *= 100
    text = model.generate_text("hello", max_new_tokens=8, temperature=1.0)
    assert isinstance(text, str)


def test_a_batch_without_codes_is_refused():
    model = tiny_next()
    with pytest.raises(ValueError, match="this model draws by discrete tokens, and a batch holds an image without"):
        model(model.collator()(examples("text_to_image", 1)))


def test_doubled_references_are_refused():
    with pytest.raises(ValueError, match=r"model.references has 'noise' twice"):
        replace(TINY, references=("noise", "condition", "noise"))


def test_prompt_latents_are_those_of_training():
    model = tiny_next(references=("condition",))
    example = examples("image_edit", 1)[0]
    batch = model.collator()([example])
    trained = reference_latents(model, batch, batch.outputs[0])[0]
    torch.testing.assert_close(prompt_latents(model, [example.parts[:-1]], (64, 64))[0], trained)
