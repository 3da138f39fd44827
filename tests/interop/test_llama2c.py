import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from diptych.interop.llama2c import load_llama2c
from diptych.interop.tokenizers import read_llama2c_pieces
from diptych.models.backbones.transformer import CausalTransformer


def write_tiny(folder, tied: bool):
    """A random model in the file layout of llama2.c."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 32}
    config = {**sizes, "max_seq_len": 64, "norm_eps": 1e-5, "rope_theta": 10_000.0, "tied_embeddings": tied}
    shapes = {"tok_embeddings.weight": (32, 16), "norm.weight": (16,)}
    shapes |= {} if tied else {"output.weight": (32, 16)}
    for index in range(2):
        name = f"layers.{index}"
        shapes |= {
            f"{name}.attention.w{key}.weight": (size, 16) for key, size in zip("qkvo", (16, 8, 8, 16), strict=True)
        }
        shapes |= {f"{name}.feed_forward.w1.weight": (24, 16), f"{name}.feed_forward.w3.weight": (24, 16)}
        shapes |= {f"{name}.feed_forward.w2.weight": (16, 24)}
        shapes |= {f"{name}.attention_norm.weight": (16,), f"{name}.ffn_norm.weight": (16,)}
    weights = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return weights


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_is_used_once(tmp_path, tied):
    weights = write_tiny(tmp_path, tied)
    model = load_llama2c(tmp_path)
    assert sum(p.numel() for p in model.parameters()) == sum(w.numel() for w in weights.values())
    found = sorted(p.double().sum().item() for p in model.parameters() if p.ndim == 1)
    assert found == sorted(w.double().sum().item() for w in weights.values() if w.ndim == 1)
    assert model.blocks[1].attention.qkv.weight[16:24].equal(weights["layers.1.attention.wk.weight"])
    assert (model.head is None) == tied


def test_damaged_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"llama2\.c model: .*config\.json is missing"):
        load_llama2c(tmp_path)
    weights = write_tiny(tmp_path, tied=True)
    del weights["layers.1.ffn_norm.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"do not fit its config\.json: 'layers\.1\.ffn_norm\.weight'"):
        load_llama2c(tmp_path)


@pytest.fixture(scope="module")
def stories(test_data) -> CausalTransformer:
    return load_llama2c(test_data / "models/stories260k").eval()


def test_real_weights_continue_a_story_as_recorded(test_data, stories):
    check = json.loads((test_data / "models/stories260k/config.json").read_text())["check"]
    tokens, cache, written, start = torch.tensor([check["prompt_ids"]]), stories.new_cache(), [], 0
    with torch.no_grad():
        for _ in check["greedy_ids"]:
            where = torch.arange(start, start + tokens.shape[1]).unsqueeze(0)
            output = stories(stories.embed(tokens), where, None, cache)
            cache, start = output.cache, start + tokens.shape[1]
            tokens = stories.logits(output.hidden_states[:, -1:]).argmax(-1)
            written.append(tokens.item())
    assert len(written) == 64
    assert written == check["greedy_ids"]


def test_real_weights_predict_real_text_as_recorded(test_data, stories):
    """1.26644 nats a token over five stories, each read alone after <s>; packed into one row they cost the same."""
    folder = test_data / "models/stories260k"
    tokenizer = read_llama2c_pieces(folder / "tok512.json")
    texts = [text.strip() for text in (folder / "tinystories_sample.txt").read_text().split("<|endoftext|>")]
    rows = [torch.tensor([1, *tokenizer.encode(text)]) for text in texts if text]
    assert len(rows) == 5

    def total(hidden, ids):
        return torch.nn.functional.cross_entropy(stories.logits(hidden[:-1]), ids[1:], reduction="sum").item()

    with torch.no_grad():
        alone = 0.0
        for ids in rows:
            where = torch.arange(len(ids)).unsqueeze(0)
            alone += total(stories(stories.embed(ids.unsqueeze(0)), where).hidden_states[0], ids)
        lengths = [len(ids) for ids in rows]
        mask = torch.block_diag(*[torch.ones(n, n) for n in lengths]).bool().tril().unsqueeze(0)
        where = torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0)
        packed = stories(stories.embed(torch.cat(rows).unsqueeze(0)), where, mask).hidden_states[0]
        together = sum(total(hidden, ids) for hidden, ids in zip(packed.split(lengths), rows, strict=True))
    num_predicted = sum(lengths) - len(rows)
    recorded = json.loads((folder / "config.json").read_text())["check"]["sample_nll_per_token"]
    assert alone / num_predicted == pytest.approx(recorded, abs=1e-5)
    assert together == pytest.approx(alone, rel=1e-5)


def test_a_copy_without_weights_is_named(test_data, tmp_path):
    shutil.copy(test_data / "models/stories260k/config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        load_llama2c(tmp_path)
