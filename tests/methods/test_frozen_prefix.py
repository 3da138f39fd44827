"""A frozen backbone reads prompts without a graph: the same losses and gradients, and no text that nobody learns."""

from dataclasses import replace

import pytest
import torch

from diptych.data.layout import SpanKind
from diptych.data.sources.scenes import ScenesSource
from diptych.methods.blip3o import Blip3oObjectives
from diptych.models.backbones.transformers_lm import TransformersBackbone
from diptych.unified.frozen_prefix import forward_for_queries, reads_frozen
from tests.tiny_models import TINY, tiny_model

TASKS = ("text_to_image", "image_edit", "multi_reference", "interleaved", "question_answering")


def frozen_model(**changes):
    model = tiny_model(config=replace(TINY, position_dim=8, **changes))
    for name, part in model.parts().items():
        part.requires_grad_(name == "image_head")
    return model


def make_batch(model, row_length, tasks=TASKS, count=10):
    sources = [ScenesSource(task=task, num_scenes=20, caption_style="mixed").build() for task in tasks]
    examples = [sources[i % len(sources)].example(i, 0) for i in range(count)]
    return model.collator(row_length=row_length)(examples, list(range(count)))


def flow_and_gradients(model, batch, **options):
    model.zero_grad()
    terms = Blip3oObjectives(noise_repeats=2, **options).joint(model, batch, torch.Generator())
    terms["flow"].sum.backward()
    return terms, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("row_length", [None, 200])
@pytest.mark.parametrize("tasks", [TASKS, ("text_to_image",)])
@pytest.mark.parametrize(
    "seen",
    [
        {},
        {"sees_context": True},
        {"sees_text": True},
        {"sees_context": True, "sees_text": True, "full_queries": True},
    ],
)
def test_losses_and_gradients_are_those_of_a_single_pass(row_length, tasks, seen):
    model = frozen_model(**seen)
    batch = make_batch(model, row_length, tasks)
    assert (batch.layout.example_ids < 0).any()  # prompts differ in length
    plain, expected = flow_and_gradients(model, batch, frozen_prefix=False)
    ours, found = flow_and_gradients(model, batch)
    torch.testing.assert_close(ours["flow"].values, plain["flow"].values, rtol=1e-5, atol=1e-6)
    assert found.keys() == expected.keys() and "image_head.queries" in found
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name in found:  # some gradients are zero but for rounding, as a key's bias in a softmax
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6 * largest)


def test_only_queries_are_passed_with_a_graph():
    model = frozen_model()
    batch = make_batch(model, 200)
    calls = []
    model.backbone.register_forward_pre_hook(
        lambda part, given: calls.append((given[0].shape[1], given[0].requires_grad))
    )
    flow_and_gradients(model, batch)
    queries = (batch.layout.kinds == SpanKind.QUERY).sum(1).max().item()
    assert [needs_graph for _, needs_graph in calls] == [False, True]
    assert calls[1][0] == queries < calls[0][0] < batch.layout.kinds.shape[1]


def test_no_logits_where_no_text_is_learnt():
    model = frozen_model()
    batch = make_batch(model, None)
    assert len(batch.target_slots)
    model.backbone.logits = None
    assert set(flow_and_gradients(model, batch)[0]) == {"flow"}
    answers = make_batch(model, None, ("question_answering",))
    assert Blip3oObjectives().joint(model, answers, torch.Generator()) == {}


@pytest.mark.parametrize("part", ["backbone", "connector", "autoencoder"])
def test_it_is_off_where_reading_is_learnt(part):
    model = frozen_model()
    batch = make_batch(model, None)
    assert reads_frozen(model, batch)
    model.parts()[part].requires_grad_(True)
    assert not reads_frozen(model, batch)
    with torch.no_grad():
        assert not reads_frozen(frozen_model(), batch)


def test_a_batch_whose_text_sees_queries_is_refused():
    model = frozen_model()
    batch = make_batch(model, 200, ("interleaved",))
    layout = replace(batch.layout, is_hidden=torch.zeros_like(batch.layout.is_hidden))
    with pytest.raises(ValueError, match=r"sees the queries of a drawn image.*set model.frozen_prefix to false"):
        forward_for_queries(model, replace(batch, layout=layout))


@pytest.mark.parametrize("row_length", [None, 200])
def test_language_models_of_transformers_read_without_a_graph_too(row_length):
    model = frozen_model()
    config = {"model_type": "qwen2", "vocab_size": model.backbone.vocab_size, "hidden_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    torch.manual_seed(1)
    model.backbone = TransformersBackbone(config={**config, **heads}).requires_grad_(False).eval()
    batch = make_batch(model, row_length)
    plain, expected = flow_and_gradients(model, batch, frozen_prefix=False)
    ours, found = flow_and_gradients(model, batch)
    torch.testing.assert_close(ours["flow"].values, plain["flow"].values, rtol=1e-5, atol=1e-6)
    queries = expected["image_head.queries"]
    assert queries.abs().max() > 0
    torch.testing.assert_close(found["image_head.queries"], queries, rtol=1e-5, atol=1e-5 * float(queries.abs().max()))
