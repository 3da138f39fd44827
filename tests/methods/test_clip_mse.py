"""CLIP + MSE: the closed form of its loss, independence of packing and neighbours, a batch learnt by heart, drawing."""

from dataclasses import replace

import pytest
import torch

from diptych import Example, ImageOut, Text, load
from diptych.data.sources.scenes import ScenesSource
from diptych.methods.clip_mse import ClipMseConfig, QueryRegressionHead, regression_objective
from diptych.train.part_configs import PixelsConfig
from tests.tiny_models import TINY


def build(**changes):
    torch.manual_seed(0)
    return ClipMseConfig(base=replace(TINY, **changes), query_std=0.5).build()


@pytest.fixture(scope="module")
def model():
    return build()


def examples(count, tasks=("text_to_image", "question_answering", "image_edit", "interleaved")):
    sources = [ScenesSource(task=task, num_scenes=20).build() for task in tasks]
    return [sources[i % len(sources)].example(i, 0) for i in range(count)]


def terms_of(model, chosen, row_length=None):
    batch = model.collator(row_length=row_length)(chosen, list(range(len(chosen))))
    return regression_objective(model, batch, torch.Generator())


def test_one_query_becomes_one_cell_in_reading_order():
    head = QueryRegressionHead(dim=3, channels=2, rows=2, cols=4)
    condition = torch.randn(5, 8, 3)
    features = head.features(condition)
    assert features.shape == (5, 2, 2, 4)
    cell = head.projection.weight @ condition[3, 4 * 1 + 2] + head.projection.bias
    torch.testing.assert_close(features[3, :, 1, 2], cell)


def test_the_loss_is_the_mean_squared_error_of_features_that_get_no_gradient(model):
    (example,) = examples(1, tasks=("text_to_image",))
    batch = model.collator()([example], [0])
    term = regression_objective(model, batch, torch.Generator())["mse"]
    with torch.no_grad():
        states = model(batch).hidden_states.flatten(0, 1)[batch.outputs[0].slots]
        wanted = model.encode_outputs(batch.outputs[0].images)
        expected = (model.image_head.features(states) - wanted).square().mean()
    torch.testing.assert_close(term.sum, expected)
    model.zero_grad()
    term.sum.backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {"backbone", "image_head"}


@pytest.mark.parametrize("row_length", [64, 200])
def test_packing_and_order_do_not_matter(model, row_length):
    chosen = examples(8)
    unpacked, packed = terms_of(model, chosen), terms_of(model, chosen[::-1], row_length)
    assert set(unpacked) == {"text", "mse"}
    for name in unpacked:
        torch.testing.assert_close(packed[name].sum, unpacked[name].sum, rtol=1e-5, atol=1e-5)
        assert packed[name].count == unpacked[name].count


def test_weights_scale_an_example(model):
    one, other = examples(2, tasks=("text_to_image",))
    plain = terms_of(model, [one])["mse"].sum
    weighed = terms_of(model, [replace(one, weight=2.0), replace(other, weight=0.0)])["mse"]
    torch.testing.assert_close(weighed.sum, 2 * plain)
    assert weighed.count == 2


def test_a_batch_is_learnt_by_heart_and_then_drawn():
    model = build()
    chosen = [Example((Text(f"a {name} thing"), ImageOut(image))) for name, image in zip(
        ("red", "blue"), (part.parts[-1].image for part in examples(2, tasks=("text_to_image",))), strict=True
    )]  # fmt: skip
    batch = model.collator()(chosen, [0, 1])
    learnt = [*model.backbone.parameters(), *model.image_head.parameters()]
    optimizer = torch.optim.Adam(learnt, lr=1e-2)
    for _ in range(250):
        optimizer.zero_grad()
        term = regression_objective(model, batch, torch.Generator())["mse"]
        (term.sum / term.count).backward()
        optimizer.step()
    assert term.mean < 0.01
    model.eval()
    settings = model.draw_settings
    wanted = model.encode_outputs(batch.outputs[0].images)
    conditions = torch.stack(model.condition([example.parts[:-1] for example in chosen], model.images.size))
    drawn = model.image_head.draw(conditions, conditions, torch.zeros_like(wanted), settings)
    assert (drawn - wanted).square().mean() < 0.02


def test_a_prompt_has_one_picture_whatever_the_seed(model, tmp_path):
    red, again, blue = model.generate_image(["a red circle", "a red circle", "a blue star"], seed=[0, 7, 0])
    assert red.tobytes() == again.tobytes() and red.tobytes() != blue.tobytes()
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model", device="cpu")
    assert isinstance(loaded.image_head, QueryRegressionHead)
    assert loaded.generate_image("a red circle", seed=3)[0].tobytes() == red.tobytes()


def test_another_size_is_refused_with_both_grids(model):
    with pytest.raises(ValueError, match=r"draws 4x4 cells of features, one a query, but the size asked for has 8x4"):
        model.generate_image("a red circle", size=(128, 64))


def test_what_cannot_be_wrapped_is_refused():
    with pytest.raises(ValueError, match=r"model.base.sees_text is True, but a regression reads its queries alone"):
        ClipMseConfig(base=replace(TINY, sees_text=True))
    with pytest.raises(ValueError, match=r"must build a UnifiedModel that draws, got PixelsConfig"):
        ClipMseConfig(base=PixelsConfig()).build()
