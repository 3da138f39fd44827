"""BLIP3-o: what is trained by which loss, independence of packing and neighbours, and one batch learnt by heart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from diptych.data.example import ImageIn, Text
from diptych.data.sources.scenes import ScenesSource
from diptych.flow.time import DiscreteTime, LogitNormalTime, UniformTime
from diptych.methods.blip3o import Blip3oObjectives
from diptych.models.backbones.protocol import BackboneOutput
from diptych.scenes.labels import LABELS
from diptych.unified import DrawSettings
from tests.tiny_models import TINY, tiny_model


def examples(count=6, tasks=("text_to_image", "question_answering", "image_edit", "multi_reference", "interleaved")):
    sources = [ScenesSource(task=task, num_scenes=20).build() for task in tasks]
    return [sources[i % len(sources)].example(i, 0) for i in range(count)]


def terms_of(model, chosen, seeds, row_length=None, objectives=None):
    batch = model.collator(row_length=row_length)(chosen, seeds)
    return (objectives or Blip3oObjectives()).joint(model, batch, torch.Generator())


def gradients(model, terms):
    model.zero_grad()
    sum(term.sum for term in terms.values()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module", params=["queries", "queries and pictures", "queries, pictures and text"])
def model(request):
    """The condition as in the paper, and with the prompt's pictures and text beside the queries."""
    seen = {"sees_context": "pictures" in request.param, "sees_text": "text" in request.param}
    return tiny_model(config=replace(TINY, position_dim=8, **seen))


def test_every_task_has_its_losses(model):
    chosen = examples(5)
    found = [set(terms_of(model, [example], [0])) for example in chosen]
    assert found == [{"flow"}, {"text"}, {"flow"}, {"flow"}, {"text", "flow"}]


@pytest.mark.parametrize("row_length", [64, 200])
def test_packed_equals_unpacked_in_loss_and_gradient(model, row_length):
    chosen, seeds = examples(8), list(range(8))
    unpacked, packed = (terms_of(model, chosen, seeds, length) for length in (None, row_length))
    assert set(packed) == {"text", "flow"}
    for name in packed:
        torch.testing.assert_close(packed[name].sum, unpacked[name].sum, rtol=1e-5, atol=1e-5)
        assert packed[name].count == unpacked[name].count
    first, second = gradients(model, unpacked), gradients(model, packed)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-4)


def test_order_and_neighbours_do_not_matter(model):
    chosen, seeds = examples(6), [11, 12, 13, 14, 15, 16]
    forwards = terms_of(model, chosen, seeds)
    backwards = terms_of(model, chosen[::-1], seeds[::-1])
    alone = [terms_of(model, [example], [seed]) for example, seed in zip(chosen, seeds, strict=True)]
    for name in ("text", "flow"):
        torch.testing.assert_close(forwards[name].sum, backwards[name].sum, rtol=1e-5, atol=1e-5)
        total = sum(terms[name].sum for terms in alone if name in terms)
        torch.testing.assert_close(forwards[name].sum, total, rtol=1e-5, atol=1e-5)


def test_padding_does_not_matter(model):
    chosen = examples(2)
    collate = model.collator()
    wide = replace(collate, pad_multiple=128)
    objectives = Blip3oObjectives()
    for name, term in objectives.joint(model, collate(chosen, [1, 2]), torch.Generator()).items():
        padded = objectives.joint(model, wide(chosen, [1, 2]), torch.Generator())[name]
        torch.testing.assert_close(term.sum, padded.sum, rtol=1e-5, atol=1e-5)


def test_weights_scale_and_zero_silences_an_example(model):
    one, other = examples(2, tasks=("text_to_image",))
    plain = terms_of(model, [one], [3])["flow"].sum
    doubled = terms_of(model, [replace(one, weight=2.0)], [3])["flow"].sum
    silenced = terms_of(model, [one, replace(other, weight=0.0)], [3, 4])["flow"]
    torch.testing.assert_close(doubled, 2 * plain)
    torch.testing.assert_close(silenced.sum, plain)
    assert silenced.count == 2


def test_a_dropped_condition_is_zeros_and_cuts_the_prompt_off(model):
    chosen = examples(2, tasks=("text_to_image",))
    dropped = Blip3oObjectives(condition_drop=1.0)
    grads = gradients(model, terms_of(model, chosen, [0, 1], objectives=dropped))
    assert all(float(g.abs().max()) == 0 for name, g in grads.items() if name.startswith("backbone"))
    kept = gradients(model, terms_of(model, chosen, [0, 1], objectives=Blip3oObjectives(condition_drop=0.0)))
    assert max(float(g.abs().max()) for name, g in kept.items() if name.startswith("backbone")) > 0
    assert float(kept["image_head.queries"].abs().max()) > 0


def test_condition_is_dropped_as_often_as_said(model):
    chosen = examples(1, tasks=("text_to_image",)) * 64
    objectives = Blip3oObjectives(condition_drop=0.25, noise_repeats=8)
    seen = []
    denoise = model.image_head.denoiser.forward
    model.image_head.denoiser.forward = lambda x, t, *given: (seen.append(given), denoise(x, t, *given))[1]
    try:
        terms_of(model, chosen, list(range(64)), objectives=objectives)
    finally:
        del model.image_head.denoiser.forward
    conditions, _, index = seen[0]
    is_dropped = conditions.abs().amax((1, 2)) == 0
    assert is_dropped.tolist() == [False] * 64 + [True]
    share = is_dropped[index].float().mean().item()
    assert len(index) == 512
    assert share == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 512) ** 0.5)


def test_repeats_draw_further_noise_for_the_same_prompt(model):
    chosen = examples(2, tasks=("text_to_image",))
    once, thrice = (
        terms_of(model, chosen, [5, 6], objectives=Blip3oObjectives(noise_repeats=n, time=UniformTime()))["flow"]
        for n in (1, 3)
    )
    assert (once.count, thrice.count) == (2, 6)
    assert len(set(thrice.levels.tolist())) == 6


def test_discrete_times_hold_pure_noise_and_never_pure_data():
    quantiles = torch.tensor([0.0, 0.0005, 0.5, 0.9999])
    torch.testing.assert_close(1 - DiscreteTime().at(quantiles), torch.tensor([1.0, 1.0, 0.5, 0.001]))


def test_reconstruction_trains_the_generation_space_alone(model):
    batch = model.collator()(examples(3), [0, 1, 2])
    term = Blip3oObjectives().reconstruction(model, batch, torch.Generator())["reconstruction"]
    grads = gradients(model, {"reconstruction": term})
    assert {name.split(".")[0] for name in grads} == {"autoencoder"}
    assert term.count >= 3


def test_labels_train_the_encoder_and_their_heads_where_the_source_has_labels():
    torch.manual_seed(0)
    space = replace(TINY.features, num_labels=len(LABELS), gate=True)
    model = replace(TINY, features=space).build()
    side = model.autoencoder.latent_shape(*model.images.size)[1]
    labelled = ScenesSource(task="text_to_image", num_scenes=4, label_cells=side).build()
    batch = model.collator()([labelled.example(i, 0) for i in range(3)], [0, 1, 2])
    assert batch.outputs[0].labels.shape == (3, len(LABELS), side, side)
    term = Blip3oObjectives().reconstruction(model, batch, torch.Generator())["labels"]
    assert term.count == 3
    names = gradients(model, {"labels": term}).keys()
    assert any(".encoder." in name for name in names) and not any(".decoder." in name for name in names)
    assert {name for name in names if "_labels" in name or name.startswith("autoencoder.gate")} == {
        f"autoencoder.{which}.{kind}"
        for which in ("cell_labels", "image_labels", "gate")
        for kind in ("weight", "bias")
    }
    unlabelled = model.collator()(examples(3), [0, 1, 2])
    assert set(Blip3oObjectives().reconstruction(model, unlabelled, torch.Generator())) == {"reconstruction"}
    with pytest.raises(ValueError, match=r"give features\.num_labels"):
        TINY.build().autoencoder.label_logits(torch.zeros(1, TINY.features.channels, side, side))


def test_a_frozen_encoder_leaves_the_decoder_to_learn_alone():
    model = replace(TINY, features=replace(TINY.features, frozen_encoder=True)).build()
    batch = model.collator()(examples(2, tasks=("text_to_image",)), [0, 1])
    grads = gradients(model, Blip3oObjectives().reconstruction(model, batch, torch.Generator()))
    assert {".".join(name.split(".")[:2]) for name in grads} == {"autoencoder.decoder"}


def test_start_from_takes_one_module_and_names_what_does_not_fit(model, tmp_path):
    model.save(tmp_path / "saved")
    source = str(tmp_path / "saved")
    taken = replace(TINY, start_from={"autoencoder.encoder": source}).build()
    for name, value in model.autoencoder.encoder.state_dict().items():
        torch.testing.assert_close(taken.autoencoder.encoder.state_dict()[name], value)
    fresh, saved = taken.autoencoder.decoder.state_dict(), model.autoencoder.decoder.state_dict()
    assert any(not torch.equal(fresh[name], saved[name]) for name in saved)
    for name in ("autoencoder.enkoder", "autoencodr.encoder"):
        with pytest.raises(ValueError, match=rf"model.start_from: {name} of .* does not fit the recipe's"):
            replace(TINY, start_from={name: source}).build()


def test_the_floor_of_the_loss_bounds_the_weight_of_late_times(model):
    late = LogitNormalTime(mean=8.0, std=0.01)
    chosen = examples(2, tasks=("text_to_image",))
    assert model.image_head.denoiser.prediction == "data"
    low, high = (
        terms_of(model, chosen, [1, 2], objectives=Blip3oObjectives(time=late, loss_floor=floor))["flow"].sum
        for floor in (0.05, 0.3)
    )
    torch.testing.assert_close(low / high, torch.tensor((0.3 / 0.05) ** 2))


def test_one_batch_is_learnt_by_heart():
    """With fixed noise and time the flow and text losses of one batch fall a thousandfold."""
    torch.manual_seed(0)
    model = TINY.build()
    model.autoencoder.requires_grad_(False)
    chosen = examples(4, tasks=("text_to_image", "question_answering"))
    batch = model.collator()(chosen, [1, 2, 3, 4])
    objectives = Blip3oObjectives(condition_drop=0.0)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    first = last = None
    for _ in range(400):
        terms = objectives.joint(model, batch, torch.Generator())
        last = {name: term.mean.item() for name, term in terms.items()}
        first = first or last
        optimizer.zero_grad()
        sum(term.mean for term in terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
    assert first is not None and last is not None
    assert last["text"] < first["text"] / 1000
    assert last["flow"] < first["flow"] / 1000


def test_context_is_the_pictures_before_a_drawing_and_nothing_else():
    model = tiny_model(config=replace(TINY, sees_context=True))
    chosen = examples(4, tasks=("text_to_image", "image_edit", "multi_reference", "interleaved"))
    batch = model.collator(row_length=200)(chosen, [0, 1, 2, 3])
    generator = torch.Generator().manual_seed(0)
    shape = (*batch.token_ids.shape, 32)
    hidden_states, embeddings = (torch.randn(shape, generator=generator) for _ in range(2))
    output = BackboneOutput(hidden_states, None, {0: embeddings})
    hidden_states, embeddings = hidden_states.flatten(0, 1), embeddings.flatten(0, 1)
    grid = batch.inputs[0].slots.shape[1]
    numbers = {}
    for group in batch.outputs:
        rows, mask = model.condition_rows(output, group)
        assert torch.equal(rows[:, :4], hidden_states[group.slots])
        for image, example in enumerate(group.example_ids.tolist()):
            before = [
                slots
                for looked_at in batch.inputs
                for slots, owner in zip(looked_at.slots, looked_at.example_ids.tolist(), strict=True)
                if owner == example and slots[0] < group.slots[image, 0]
            ]
            numbers.setdefault(example, []).append(len(before))
            expected = torch.cat(
                [embeddings[slots] for slots in sorted(before, key=lambda s: int(s[0]))] or [rows[:0, 0]]
            )
            own = rows[image] if mask is None else rows[image][mask[image]]
            torch.testing.assert_close(own[4:], F.rms_norm(expected, (32,)))
            assert len(own) == 4 + grid * len(before)
    references = sum(isinstance(part, ImageIn) for part in chosen[2].parts)
    assert {key: sorted(value) for key, value in numbers.items()} == {0: [0], 1: [1], 2: [references], 3: [0, 1]}


def test_text_of_the_condition_is_what_stands_before_a_drawing_in_its_example():
    model = tiny_model(config=replace(TINY, sees_text=True))
    chosen = examples(5, tasks=("text_to_image", "image_edit", "multi_reference", "interleaved", "text_to_image"))
    batch = model.collator(row_length=300)(chosen, [0, 1, 2, 3, 4])
    hidden_states = torch.randn(*batch.token_ids.shape, 32, generator=torch.Generator().manual_seed(0))
    output = BackboneOutput(hidden_states, None, {})
    hidden_states = hidden_states.flatten(0, 1)
    is_text, owners = (batch.layout.kinds == 0).flatten(), batch.layout.example_ids.flatten()
    places = torch.arange(len(owners))
    numbers = set()
    for group in batch.outputs:
        rows, mask = model.condition_rows(output, group)
        for image, example in enumerate(group.example_ids.tolist()):
            before = is_text & (owners == example) & (places < group.slots[image, 0])
            numbers.add(int(before.sum()))
            expected = torch.cat([hidden_states[group.slots[image]], hidden_states[before]])
            assert torch.equal(rows[image][mask[image]], expected)
    assert len(numbers) > 2
    assert tiny_model().collator()(chosen).outputs[0].text_slots.shape[1] == 0


def test_text_of_the_prompt_reaches_a_drawing_without_the_queries():
    """Where queries say nothing, a denoiser that sees text still has a way to the prompt; another has none."""
    chosen = examples(2, tasks=("text_to_image",))
    found = []
    for sees_text in (True, False):
        model = tiny_model(config=replace(TINY, sees_text=sees_text))
        batch = model.collator()(chosen, [0, 1])
        for group in batch.outputs:
            output = model.forward_for_drawing(batch)
            flat = output.hidden_states.flatten(0, 1)
            output = replace(
                output, hidden_states=flat.index_fill(0, group.slots.flatten(), 0).view_as(output.hidden_states)
            )
            rows, mask = model.condition_rows(output, group)
            said = rows.square().sum() if mask is None else rows[mask].square().sum()
            found.append(float(torch.autograd.grad(said, model.backbone.embedding.weight)[0].abs().max()))
    assert found[0] > 0 and found[1] == 0


def test_prompts_with_and_without_thoughts_are_drawn_together_as_alone():
    model = tiny_model(config=replace(TINY, sees_text=True))
    thought = Text("c3 small red circle, f6 large blue star, on beige, " * 3, role="assistant", is_thought=True)
    prompts = [["a red circle"], ["a blue star", thought], ["a red circle and " * 9]]
    together = [np.asarray(image).astype(int) for image in model.generate_image(prompts, seed=[1, 2, 3])]
    for seed, (prompt, image) in enumerate(zip(prompts, together, strict=True), start=1):
        alone = np.asarray(model.generate_image([prompt], seed=seed)[0]).astype(int)
        assert np.abs(alone - image).max() <= 1


def test_pictures_of_the_prompt_reach_a_drawing_without_the_queries():
    model = tiny_model(config=replace(TINY, sees_context=True))
    chosen = examples(2, tasks=("image_edit",))
    grads = gradients(model, terms_of(model, chosen, [0, 1], objectives=Blip3oObjectives(condition_drop=0.0)))
    assert float(grads["connector.fc1.weight"].abs().max()) > 0
    blind = tiny_model()
    assert blind.collator()(chosen).outputs[0].context_slots.shape == (2, 0)


def test_prompts_with_other_numbers_of_pictures_are_drawn_together_as_alone():
    model = tiny_model(config=replace(TINY, sees_context=True))
    picture = np.full((64, 64, 3), 200, np.uint8)
    prompts = [["a red circle"], [picture, "make it blue"], [picture, picture, "both"], ["a blue square"]]
    together = [np.asarray(image).astype(int) for image in model.generate_image(prompts, seed=[1, 2, 3, 4])]
    for seed, (prompt, image) in enumerate(zip(prompts, together, strict=True), start=1):
        alone = np.asarray(model.generate_image([prompt], seed=seed)[0]).astype(int)
        assert np.abs(alone - image).max() <= 1
    away = model.generate_image([[picture, "make it blue"]], negative_prompt="a red circle", seed=2)[0]
    assert np.abs(np.asarray(away).astype(int) - together[1]).max() > 1


def test_a_condition_padded_beside_a_longer_one_says_the_same():
    """A negative prompt may have fewer pictures than the prompt."""
    head = tiny_model(config=replace(TINY, sees_context=True)).image_head
    generator = torch.Generator().manual_seed(0)
    condition, null = (torch.randn(2, rows, 32, generator=generator) for rows in (20, 4))
    noise = torch.randn(2, 8, 4, 4, generator=generator)
    settings = DrawSettings(num_steps=2, guidance_scale=1.0)
    both = head.draw(condition, null, noise, settings)
    torch.testing.assert_close(both, head.draw(condition, condition, noise, settings), rtol=1e-4, atol=1e-5)
    swapped = head.draw(null, condition, noise, settings)
    torch.testing.assert_close(swapped, head.draw(null, null, noise, settings), rtol=1e-4, atol=1e-5)


def test_a_shared_null_condition_is_encoded_once_for_all_images_and_steps(monkeypatch):
    model = tiny_model()
    denoiser = model.image_head.denoiser
    condition, noise = torch.randn(3, 4, 32), torch.randn(3, 8, 4, 4)
    settings = DrawSettings(num_steps=4, guidance_scale=2.0)
    seen, own = [], denoiser.encode_condition
    monkeypatch.setattr(denoiser, "encode_condition", lambda *given: seen.append(given[0]) or own(*given))
    with torch.no_grad():
        shared = model.image_head.draw(condition, model.image_head.null_condition(3), noise, settings)
        assert [len(rows) for rows in seen] == [4]
        apart = model.image_head.draw(condition, torch.zeros(3, 4, 32), noise, settings)
        assert [len(rows) for rows in seen] == [4, 6]
        plain = noise
        for k in range(4):  # the plain way: two calls a step, each with the condition as it is
            t = torch.full((3,), k / 4)
            told, blank = (model.image_head.velocity(plain, t, c) for c in (condition, torch.zeros_like(condition)))
            plain = plain + (blank + 2.0 * (told - blank)) / 4
    torch.testing.assert_close(shared, apart, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shared, plain, rtol=1e-5, atol=1e-5)
