import pytest
import torch

from diptych.models.backbones.transformer import CausalTransformer

SMALL = {"vocab_size": 64, "dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 48}


def positions(batch: int, seq: int, start: int = 0) -> torch.Tensor:
    return torch.arange(start, start + seq).repeat(batch, 1)


def twin_of_transformers(ours: CausalTransformer):
    """The same network in transformers; it pairs channel i with i + head_dim / 2, ours neighbours."""
    transformers = pytest.importorskip("transformers")
    shared = {
        "vocab_size": ours.vocab_size,
        "hidden_size": ours.dim,
        "intermediate_size": ours.ffn_dim,
        "num_hidden_layers": ours.num_layers,
        "num_attention_heads": ours.num_heads,
        "num_key_value_heads": ours.num_kv_heads,
        "rms_norm_eps": ours.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": ours.rope_theta},
        "tie_word_embeddings": ours.head is None,
        "pad_token_id": None,
    }
    head_dim = ours.dim // ours.num_heads
    if ours.qk_norm:
        config = transformers.Qwen3Config(**shared, head_dim=head_dim)
        peer = transformers.Qwen3ForCausalLM(config).eval()
    else:
        peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shared)).eval()

    def halves(rows: torch.Tensor) -> torch.Tensor:
        return rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)

    state = {"model.embed_tokens.weight": ours.embedding.weight, "model.norm.weight": ours.norm.weight}
    state["lm_head.weight"] = ours.embedding.weight if ours.head is None else ours.head.weight
    for index, block in enumerate(ours.blocks):
        name, attention = f"model.layers.{index}", block.attention
        kv = ours.num_kv_heads * head_dim
        query, key, value = attention.qkv.weight.split((ours.dim, kv, kv))
        state |= {
            f"{name}.self_attn.q_proj.weight": halves(query),
            f"{name}.self_attn.k_proj.weight": halves(key),
            f"{name}.self_attn.v_proj.weight": value,
            f"{name}.self_attn.o_proj.weight": attention.out.weight,
            f"{name}.input_layernorm.weight": block.attention_norm.weight,
            f"{name}.post_attention_layernorm.weight": block.ffn_norm.weight,
        }
        for part in ("gate", "up", "down"):
            state[f"{name}.mlp.{part}_proj.weight"] = getattr(block.feed_forward, part).weight
        if ours.qk_norm:
            state[f"{name}.self_attn.q_norm.weight"] = halves(attention.query_norm.weight)
            state[f"{name}.self_attn.k_norm.weight"] = halves(attention.key_norm.weight)
    peer.load_state_dict({key: tensor.detach() for key, tensor in state.items()})
    return peer


@pytest.mark.parametrize(
    "options",
    [{}, {"num_kv_heads": 4, "rope_theta": 500.0}, {"num_kv_heads": 1, "tie_embeddings": False}, {"qk_norm": True}],
)
def test_equal_to_transformers_in_values_and_gradients(options):
    torch.manual_seed(0)
    ours = CausalTransformer(**{**SMALL, **options})
    with torch.no_grad():  # norm weights that matter
        for parameter in ours.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    peer = twin_of_transformers(ours)
    ids, where = torch.randint(64, (2, 11)), positions(2, 11)
    hidden = ours(ours.embed(ids), where).hidden_states
    theirs = peer(ids, output_hidden_states=True)
    torch.testing.assert_close(ours.logits(hidden), theirs.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hidden, theirs.hidden_states[-1], rtol=1e-4, atol=1e-5)
    ours.logits(hidden).logsumexp(-1).sum().backward()
    theirs.logits.logsumexp(-1).sum().backward()
    torch.testing.assert_close(ours.embedding.weight.grad, peer.model.embed_tokens.weight.grad, rtol=1e-4, atol=1e-4)
    for block, layer in zip(ours.blocks, peer.model.layers, strict=True):
        for part in ("gate", "up", "down"):
            expected = getattr(layer.mlp, f"{part}_proj").weight.grad
            torch.testing.assert_close(getattr(block.feed_forward, part).weight.grad, expected, rtol=1e-3, atol=1e-4)


def test_under_autocast_the_output_is_that_of_float32():
    torch.manual_seed(0)
    model, ids = CausalTransformer(**SMALL), torch.randint(64, (2, 12))
    exact = model(model.embed(ids), positions(2, 12)).hidden_states
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(model.embed(ids), positions(2, 12)).hidden_states
        prefix = model(model.embed(ids[:, :8]), positions(2, 8), None, model.new_cache())
        later = model(model.embed(ids[:, 8:]), positions(2, 4, 8), None, prefix.cache).hidden_states
    torch.testing.assert_close(rounded.float(), exact, rtol=2e-2, atol=4e-2)
    torch.testing.assert_close(later.float(), exact[:, 8:], rtol=2e-2, atol=4e-2)


def test_a_float32_prefix_serves_bfloat16_queries():
    torch.manual_seed(0)
    model, ids = CausalTransformer(**SMALL), torch.randint(64, (1, 8))
    exact = model(model.embed(ids), positions(1, 8)).hidden_states[:, 6:]
    with torch.no_grad():
        cache = model(model.embed(ids[:, :5]), positions(1, 5), None, model.new_cache()).cache
        cache = model(model.embed(ids[:, 5:6]), positions(1, 1, 5), None, cache).cache
        with torch.autocast("cpu", torch.bfloat16):
            cache = model(model.embed(ids[:, 6:7]), positions(1, 1, 6), None, cache).cache
            late = model(model.embed(ids[:, 7:]), positions(1, 1, 7), None, cache).hidden_states
    torch.testing.assert_close(late.float(), exact[:, 1:], rtol=2e-2, atol=4e-2)


def test_decoding_writes_into_shared_buffers_instead_of_copying():
    torch.manual_seed(0)
    model, ids = CausalTransformer(**SMALL), torch.randint(64, (1, 40))
    with torch.no_grad():
        output = model(model.embed(ids[:, :4]), positions(1, 4), None, model.new_cache())
        addresses = []
        for position in range(4, 40):
            step = model.embed(ids[:, position : position + 1])
            output = model(step, positions(1, 1, position), None, output.cache)
            addresses.append(output.cache.keys[0].data_ptr())
    assert len(set(addresses)) == 1
    whole = model(model.embed(ids), positions(1, 40)).hidden_states
    torch.testing.assert_close(output.hidden_states, whole[:, -1:], rtol=1e-4, atol=1e-5)


def test_a_decoded_text_longer_than_the_buffers_moves_to_larger_ones():
    torch.manual_seed(0)
    model, ids = CausalTransformer(**SMALL), torch.randint(64, (1, 200))
    cache = model.new_cache()
    with torch.no_grad():
        for position in range(200):
            output = model(model.embed(ids[:, position : position + 1]), positions(1, 1, position), None, cache)
            cache = output.cache
    assert cache.length == 200
    whole = model(model.embed(ids), positions(1, 200)).hidden_states
    torch.testing.assert_close(output.hidden_states, whole[:, -1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_fresh_weights_are_in_proportion_and_all_get_a_gradient(tied):
    """Logits of about unit size; blocks that change the stream a little at first, whatever the depth."""
    torch.manual_seed(0)
    sizes = {**SMALL, "dim": 128, "ffn_dim": 256, "vocab_size": 512, "num_layers": 6, "qk_norm": True}
    model = CausalTransformer(**sizes, tie_embeddings=tied)
    ids = torch.randint(512, (4, 32))
    output = model(model.embed(ids), positions(4, 32), layers=(0, 6))
    assert 0.7 < model.logits(output.hidden_states).std() < 1.5
    change = (output.layer_states[6] - output.layer_states[0]).std() / output.layer_states[0].std()
    assert 0.1 < change < 2
    logits = model.logits(output.hidden_states)
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_it_learns_to_repeat_a_sequence():
    """Overfit one batch: the loss falls a thousandfold."""
    torch.manual_seed(0)
    model, ids = CausalTransformer(**SMALL), torch.randint(64, (4, 12))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        logits = model.logits(model(model.embed(ids[:, :-1]), positions(4, 11)).hidden_states)
        loss = torch.nn.functional.cross_entropy(logits[:, 1:].flatten(0, 1), ids[:, 2:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 36}, r"dim must be a multiple of 2 \* num_heads .* got dim 36 and 4 heads\. Use 32"),
        ({"num_kv_heads": 3}, "num_heads must be a multiple of num_kv_heads, got 4 and 3"),
        ({"num_layers": 0}, "backbone.num_layers must be at least 1, got 0"),
    ],
)
def test_messages(change, message):
    with pytest.raises(ValueError, match=message):
        CausalTransformer(**{**SMALL, **change})


def test_a_foreign_cache_is_refused():
    class Other:
        length = 0

        def select(self, rows):
            return self

        def crop(self, length):
            return self

    model = CausalTransformer(**SMALL)
    with pytest.raises(TypeError, match=r"cache must come from this backbone's new_cache\(\), got Other"):
        model(model.embed(torch.zeros(1, 2, dtype=torch.long)), positions(1, 2), None, Other())
