"""One suite for every backbone: our own, and those of transformers saved to and loaded from a folder."""

import json

import pytest
import torch
from tiny_backbones import FOREIGN, VOCAB, foreign_model, positions, tokens

from diptych.models.backbones.transformer import CausalTransformer
from diptych.models.backbones.transformers_lm import TransformersBackbone, load_backbone
from diptych.models.part import build_part

OURS = {
    "ours": {"num_kv_heads": 2},
    "ours_untied_qk_norm": {"num_kv_heads": 4, "tie_embeddings": False, "qk_norm": True},
}
_MADE: dict = {}


@pytest.fixture(params=[*OURS, *FOREIGN])
def name(request):
    return request.param


@pytest.fixture
def backbone(name, tmp_path_factory):
    if name not in _MADE:
        torch.manual_seed(0)
        if name in OURS:
            _MADE[name] = CausalTransformer(
                vocab_size=VOCAB, dim=32, num_layers=3, num_heads=4, ffn_dim=48, **OURS[name]
            )
        else:
            folder = tmp_path_factory.mktemp(name)
            foreign_model(name).save_pretrained(folder)
            _MADE[name] = load_backbone(folder, attention="eager" if name.endswith("eager") else "sdpa")
    return _MADE[name].eval()


def causal(batch: int, seq: int, keys: int | None = None) -> torch.Tensor:
    keys = keys or seq
    return torch.ones(batch, seq, keys, dtype=torch.bool).tril(keys - seq)


def full_pass(backbone, ids, mask=None, start=0):
    return backbone(backbone.embed(ids), positions(*ids.shape, start), mask).hidden_states


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def close_gradients(a, b):
    """Relative to the largest: single elements are differences of large terms."""
    close(a / b.abs().max(), b / b.abs().max())


def test_a_mask_that_says_causal_is_the_same_as_none(backbone):
    ids = tokens(2, 9)
    close(full_pass(backbone, ids, causal(2, 9)), full_pass(backbone, ids))


def test_causality(backbone):
    ids, changed = tokens(1, 9), tokens(1, 9)
    changed[0, 5] = (changed[0, 5] + 1) % VOCAB
    before, after = full_pass(backbone, ids), full_pass(backbone, changed)
    close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("pieces", [(9,), (4, 5), (1, 3, 5), (5, *[1] * 4)])
def test_cached_is_uncached(backbone, pieces, masked, graph):
    ids = tokens(2, 9)
    whole = full_pass(backbone, ids)
    with torch.set_grad_enabled(graph):
        cache, start, parts = backbone.new_cache(), 0, []
        for length in pieces:
            mask = causal(2, length, start + length) if masked else None
            embeddings = backbone.embed(ids[:, start : start + length])
            output = backbone(embeddings, positions(2, length, start), mask, cache)
            cache, start = output.cache, start + length
            parts.append(output.hidden_states)
            assert cache.length == start
    close(torch.cat(parts, 1), whole)


def test_without_a_cache_none_comes_back(backbone):
    assert backbone(backbone.embed(tokens(1, 3)), positions(1, 3)).cache is None


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_is_unpadded(backbone, side):
    lengths, longest = (3, 7, 5), 7
    ids, mask, where = tokens(3, longest), torch.zeros(3, longest, longest, dtype=torch.bool), positions(3, longest)
    rows = []
    for row, length in enumerate(lengths):
        start = longest - length if side == "left" else 0
        rows.append(slice(start, start + length))
        mask[row, rows[row], rows[row]] = causal(1, length)[0]
        where[row] = (where[row] - start).clamp(min=0)
    output = backbone(backbone.embed(ids), where, mask).hidden_states
    assert output.isfinite().all()
    for row in range(3):
        close(output[row : row + 1, rows[row]], full_pass(backbone, ids[row : row + 1, rows[row]]))


def test_unequal_prompts_in_a_cache_then_one_more_turn(backbone):
    ids, more, lengths = tokens(2, 6), tokens(2, 3, seed=1), (4, 6)
    valid = torch.arange(6) < torch.tensor(lengths)[:, None]
    prefix = backbone(backbone.embed(ids), positions(2, 6), causal(2, 6) & valid[:, None], backbone.new_cache())
    mask = torch.cat((valid[:, None].expand(2, 3, 6), causal(2, 3)), dim=2)
    where = positions(2, 3) + torch.tensor(lengths)[:, None]
    output = backbone(backbone.embed(more), where, mask, prefix.cache).hidden_states
    for row, length in enumerate(lengths):
        alone = full_pass(backbone, torch.cat((ids[row : row + 1, :length], more[row : row + 1]), 1))
        close(output[row : row + 1], alone[:, length:])


def test_packed_is_separate(backbone):
    ids, lengths = tokens(1, 12), (5, 3, 4)
    mask, where, start = torch.zeros(1, 12, 12, dtype=torch.bool), positions(1, 12), 0
    for length in lengths:
        span = slice(start, start + length)
        mask[0, span, span] = causal(1, length)[0]
        where[0, span] = torch.arange(length)
        start += length
    packed = backbone(backbone.embed(ids), where, mask).hidden_states
    separate = [full_pass(backbone, piece) for piece in ids.split(lengths, 1)]
    close(packed, torch.cat(separate, 1))


def test_positions_that_restart_are_not_a_mask(backbone):
    ids, where = tokens(1, 6), torch.tensor([[0, 1, 2, 0, 1, 2]])
    unmasked = backbone(backbone.embed(ids), where).hidden_states
    close(unmasked, backbone(backbone.embed(ids), where, causal(1, 6)).hidden_states)


def test_queries_with_full_attention_do_not_depend_on_their_order(backbone):
    mask = causal(1, 8)
    mask[0, 5:, 5:] = True
    where = torch.tensor([[0, 1, 2, 3, 4, 5, 5, 5]])
    embeddings = backbone.embed(tokens(1, 8))
    order = torch.tensor([0, 1, 2, 3, 4, 7, 5, 6])
    straight = backbone(embeddings, where, mask).hidden_states
    turned = backbone(embeddings[:, order], where, mask).hidden_states
    close(straight[:, order], turned)
    assert (straight - backbone(embeddings, where).hidden_states)[:, 5].abs().max() > 1e-3


def test_blind_rows_are_finite_and_change_nobody(backbone):
    mask = causal(2, 6)
    mask[1, 4:] = False
    embeddings = backbone.embed(tokens(2, 6)).detach().requires_grad_()
    output = backbone(embeddings, positions(2, 6), mask).hidden_states
    assert output.isfinite().all()
    close(output[1, :4], full_pass(backbone, tokens(2, 6))[1, :4])
    output[1, :4].square().sum().backward()
    assert embeddings.grad.isfinite().all()
    assert (embeddings.grad[1, 4:] == 0).all()
    output = backbone(embeddings, positions(2, 6), mask).hidden_states.sum()
    assert torch.autograd.grad(output, embeddings)[0].isfinite().all()


def test_prefix_without_graph_gives_the_queries_the_same_gradients(backbone):
    ids, num_queries = tokens(2, 7), 3
    queries = torch.randn(1, num_queries, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    target = torch.randn(2, num_queries, 32, generator=torch.Generator().manual_seed(2))
    together = torch.cat((backbone.embed(ids), queries.expand(2, -1, -1)), 1)
    whole = backbone(together, positions(2, 10)).hidden_states[:, 7:]
    expected = torch.autograd.grad((whole * target).sum(), queries)[0]
    with torch.no_grad():
        prefix = backbone(backbone.embed(ids), positions(2, 7), None, backbone.new_cache()).cache
    late = backbone(queries.expand(2, -1, -1), positions(2, num_queries, 7), None, prefix).hidden_states
    close(late, whole)
    close_gradients(torch.autograd.grad((late * target).sum(), queries)[0], expected)


def test_prefix_with_graph_passes_gradients_through_the_cache(backbone):
    embeddings = backbone.embed(tokens(1, 6)).detach().requires_grad_()
    target = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(1))
    whole = backbone(embeddings, positions(1, 6)).hidden_states
    expected = torch.autograd.grad((whole * target).sum(), embeddings)[0]
    first = backbone(embeddings[:, :4], positions(1, 4), None, backbone.new_cache())
    second = backbone(embeddings[:, 4:], positions(1, 2, 4), None, first.cache.select(torch.tensor([0])))
    parts = torch.cat((first.hidden_states, second.hidden_states), 1)
    close_gradients(torch.autograd.grad((parts * target).sum(), embeddings)[0], expected)


@pytest.mark.parametrize("graph", [True, False])
def test_selected_rows_continue_alone(backbone, graph):
    ids, more, rows = tokens(3, 5), tokens(4, 2, seed=1), torch.tensor([2, 0, 0, 1])
    with torch.set_grad_enabled(graph):
        cache = backbone(backbone.embed(ids), positions(3, 5), None, backbone.new_cache()).cache.select(rows)
        output = backbone(backbone.embed(more), positions(4, 2, 5), None, cache).hidden_states
    close(output, full_pass(backbone, torch.cat((ids[rows], more), 1))[:, 5:])


@pytest.mark.parametrize("graph", [True, False])
def test_an_extended_cache_stays_valid_and_so_do_its_crops(backbone, graph):
    ids = tokens(2, 6)
    branches = [tokens(2, 3, seed=seed) for seed in (1, 2, 3)]

    def extend(cache, piece):
        return backbone(backbone.embed(piece), positions(2, piece.shape[1], cache.length), None, cache)

    with torch.set_grad_enabled(graph):
        first = extend(backbone.new_cache(), ids[:, :5]).cache
        trunk = extend(first, ids[:, 5:]).cache
        outputs = [extend(trunk, branch) for branch in branches]
        again = [extend(output.cache, branches[0]).hidden_states for output in outputs]
        cropped = extend(outputs[1].cache.crop(3), branches[2])
        assert (trunk.length, outputs[0].cache.length, cropped.cache.length) == (6, 9, 6)
        empty = extend(trunk.crop(0), ids[:, :2]).hidden_states
    for branch, output, further in zip(branches, outputs, again, strict=True):
        whole = full_pass(backbone, torch.cat((ids, branch, branches[0]), 1))
        close(output.hidden_states, whole[:, 6:9])
        close(further, whole[:, 9:])
    close(cropped.hidden_states, full_pass(backbone, torch.cat((ids[:, :3], branches[2]), 1))[:, 3:])
    close(empty, full_pass(backbone, ids[:, :2]))


def test_a_prefix_of_inference_mode_can_be_continued_outside(backbone):
    ids = tokens(1, 8)
    cache, start = backbone.new_cache(), 0
    with torch.inference_mode():
        for length in (4, 1, 1):
            piece = backbone.embed(ids[:, start : start + length])
            cache, start = backbone(piece, positions(1, length, start), None, cache).cache, start + length
    with torch.no_grad():
        output = backbone(backbone.embed(ids[:, 6:7]), positions(1, 1, 6), None, cache)
    queries = backbone.embed(ids[:, 7:]).detach().requires_grad_()
    last = backbone(queries, positions(1, 1, 7), None, output.cache).hidden_states
    close(last, full_pass(backbone, ids)[:, 7:])
    assert torch.autograd.grad(last.sum(), queries)[0].isfinite().all()


def test_layer_states(backbone):
    ids = tokens(2, 5)
    output = backbone(backbone.embed(ids), positions(2, 5), layers=(0, 1, 3))
    assert sorted(output.layer_states) == [0, 1, 3]
    close(output.layer_states[0], backbone.embed(ids))
    inner = backbone if isinstance(backbone, CausalTransformer) else backbone.model
    norm = inner.norm if hasattr(inner, "norm") else inner.ln_f
    close(norm(output.layer_states[3]), output.hidden_states)
    assert (output.layer_states[1] - output.layer_states[3]).abs().max() > 1e-3
    assert backbone(backbone.embed(ids), positions(2, 5)).layer_states == {}


def test_logits_and_attributes(backbone):
    hidden = full_pass(backbone, tokens(2, 5))
    assert backbone.logits(hidden).shape == (2, 5, VOCAB)
    close(backbone.logits(hidden[0, 3]), backbone.logits(hidden)[0, 3])
    assert (backbone.dim, backbone.vocab_size, backbone.num_layers) == (32, VOCAB, 3)


def test_config_builds_the_same_backbone_again(backbone):
    config = backbone.config_dict()
    again = build_part(json.loads(json.dumps(config)))
    assert again.config_dict() == config
    again.load_state_dict(backbone.state_dict())
    ids = tokens(2, 5)
    torch.testing.assert_close(full_pass(again.eval(), ids), full_pass(backbone, ids), rtol=0, atol=0)


def test_no_two_entries_of_the_state_share_memory(backbone):
    """safetensors refuses shared memory: tied embeddings must appear once."""
    pointers = [tensor.data_ptr() for tensor in backbone.state_dict().values()]
    assert len(pointers) == len(set(pointers))


def test_messages(backbone):
    embeddings = backbone.embed(tokens(2, 4))
    where = positions(2, 4)
    with pytest.raises(ValueError, match=r"mask must have shape .* \(2, 4, 4\), got \(2, 4, 3\)"):
        backbone(embeddings, where, causal(2, 4)[:, :, :3])
    with pytest.raises(ValueError, match=r"layers must be between 0 .* and 3 .*, got \[4\]"):
        backbone(embeddings, where, layers=(1, 4))
    with pytest.raises(ValueError, match=r"positions of shape \(batch, seq\).*, got \(2, 4, 2\)"):
        backbone(embeddings, where.unsqueeze(-1).expand(-1, -1, 2))
    cache = backbone(embeddings, where, None, backbone.new_cache()).cache
    with pytest.raises(ValueError, match=r"cache holds 2 rows and the embeddings 1.*select"):
        backbone(embeddings[:1], where[:1], None, cache)
    with pytest.raises(ValueError, match=r"length must be between 0 and 4, got 5"):
        cache.crop(5)
    with pytest.raises(ValueError, match=r"cache holds 1 layers and the backbone has 3"):
        backbone(embeddings, where, None, type(cache)(cache.keys[:1], cache.values[:1]))


def test_both_kinds_were_tested():
    assert len(_MADE) == len(OURS) + len(FOREIGN)
    assert sum(isinstance(made, TransformersBackbone) for made in _MADE.values()) == len(FOREIGN)
