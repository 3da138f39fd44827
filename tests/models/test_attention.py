import pytest
import torch

from diptych.models.attention import attend, causal_mask, see_own_key


def by_loops(query, key, value, mask):
    """Softmax attention one query at a time."""
    batch, heads, seq, head_dim = query.shape
    out = torch.zeros(batch, seq, heads, head_dim)
    for b in range(batch):
        for h in range(heads):
            source = h // (heads // key.shape[1])
            for i in range(seq):
                seen = mask[b, i]
                scores = key[b, source][seen] @ query[b, h, i] / head_dim**0.5
                out[b, i, h] = scores.softmax(0) @ value[b, source][seen]
    return out.flatten(2)


def make(batch=2, heads=4, kv_heads=2, seq=3, keys=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, seq, 8, generator=generator)
    key, value = torch.randn(2, batch, kv_heads, keys, 8, generator=generator)
    mask = torch.rand(batch, seq, keys, generator=generator) < 0.6
    mask[:, :, 0] = True
    return query, key, value, mask


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_is_softmax_over_the_seen_keys(kv_heads):
    query, key, value, mask = make(kv_heads=kv_heads)
    torch.testing.assert_close(attend(query, key, value, mask), by_loops(query, key, value, mask))


def test_causal_without_a_mask():
    query, key, value, _ = make(seq=5)
    expected = by_loops(query, key, value, causal_mask(5, 5, query.device).expand(2, -1, -1))
    torch.testing.assert_close(attend(query, key, value, None, is_causal=True), expected)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("kind", ["mask", "causal", "all"])
def test_the_explicit_path_of_bfloat16_gives_the_values_and_gradients_of_float32(kv_heads, kind):
    query, key, value, mask = (x.bfloat16() if x.is_floating_point() else x for x in make(kv_heads=kv_heads, seq=5))
    mask = mask if kind == "mask" else None
    inputs = [x.requires_grad_() for x in (query, key, value)]
    exact = [x.detach().float().requires_grad_() for x in inputs]
    ours = attend(*inputs, mask, kind == "causal")
    theirs = attend(*exact, mask, kind == "causal")
    torch.testing.assert_close(ours.float(), theirs, rtol=2e-2, atol=2e-2)
    weights = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((ours * weights).sum(), inputs)
    expected = torch.autograd.grad((theirs * weights).sum(), exact)
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found.float(), wanted, rtol=2e-2, atol=4e-2)  # sums of several rounded terms


def test_one_mask_serves_all_rows():
    query, key, value, mask = make()
    shared = mask[:1].expand(2, -1, -1)
    torch.testing.assert_close(attend(query, key, value, mask[:1]), attend(query, key, value, shared.contiguous()))


def test_causal_mask_counts_from_the_end_of_the_keys():
    assert causal_mask(2, 4, torch.device("cpu")).tolist() == [[[True, True, True, False], [True, True, True, True]]]


def test_blind_rows_see_their_own_key_and_others_are_unchanged():
    mask = torch.zeros(1, 2, 4, dtype=torch.bool)
    mask[0, 1, 0] = True
    assert see_own_key(mask).tolist() == [[[False, False, True, False], [True, False, False, False]]]
