"""The text-aligned tokenizer: nearest codes, gradients through the cut, and a codebook that words span."""

import math

import pytest
import torch

from diptych.models.backbones.grow import with_more_tokens
from diptych.models.encoders.ta_tok import COMMITMENT, TextAlignedTokenizer
from diptych.models.encoders.vit import VisionTransformer
from diptych.models.part import build_part
from diptych.train.part_configs import BackboneConfig


def tokenizer(seed=0, **changes):
    torch.manual_seed(seed)
    vit = VisionTransformer(image_size=(32, 32), patch_size=8, dim=24, num_layers=2, num_heads=2, pooling="mean")
    sizes = {"num_codes": 10, "code_dim": 4, "image_size": 32, "decoder_layers": 1, "decoder_heads": 2}
    return TextAlignedTokenizer(encoder=vit, **{**sizes, **changes}).eval()


def test_codes_are_the_nearest_by_distance():
    own, images = tokenizer(), torch.rand(3, 3, 32, 32) * 2 - 1
    vectors = own.bottleneck_vectors(own.standardised(own(images).tokens))
    expected = torch.cdist(vectors, own.codebook()[None].expand(3, -1, -1)).argmin(-1)
    assert torch.equal(own.codes(images), expected)
    torch.testing.assert_close(own.codebook().norm(dim=-1), torch.ones(10))


@pytest.mark.parametrize(("pool", "grid"), [(1, (4, 4)), (2, (2, 2))])
def test_features_are_pooled_and_pictures_of_any_size_have_as_many_codes(pool, grid):
    own = tokenizer(pool=pool)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    output = own(images)
    assert output.grid == grid == own.fixed_grid() and own.codes(torch.rand(1, 3, 64, 48)).shape[1] == math.prod(grid)
    tokens = own.encoder(images).tokens.reshape(2, 4, 4, 24)
    first = tokens[:, :pool, :pool].mean((1, 2))
    torch.testing.assert_close(output.tokens[:, 0], first)


def test_a_layer_below_the_last_can_be_taken():
    own, images = tokenizer(layer=1), torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(own(images).tokens, own.encoder(images, (1,)).layer_tokens[1])


def test_the_loss_is_that_of_vq_vae_and_passes_the_cut():
    own, images = tokenizer(), torch.rand(2, 3, 32, 32) * 2 - 1
    found = own.quantise(images)
    vectors = own.bottleneck_vectors(found.features)
    squares = (vectors - own.codebook()[found.codes]).square().sum(-1)
    torch.testing.assert_close(found.distance, (1 + COMMITMENT) * squares)
    found.decoded.square().sum().backward()
    assert own.bottleneck.weight.grad.abs().max() > 0  # through the straight-through estimate
    assert own.codebook_map.weight.grad is None  # the codebook moves by its own distance alone
    assert all(p.grad is None for p in own.encoder.parameters())
    torch.testing.assert_close(own.decode(found.codes, (4, 4)), found.decoded, rtol=1e-4, atol=1e-5)


def test_usage_is_zero_for_equal_probabilities_and_log_k_for_one_code():
    own = tokenizer()
    with torch.no_grad():
        own.codebook_map.weight.zero_()  # all codes are one direction: equal probabilities
    assert own.quantise(torch.rand(2, 3, 32, 32)).usage.item() == pytest.approx(0, abs=1e-5)


def test_the_codebook_is_a_map_of_the_words_farthest_from_the_others():
    own = tokenizer(word_dim=3, num_codes=4)
    words = torch.tensor([[0.0, 0.0, 0.1], [5.0, 0.0, 0.0], [0.0, -5.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 5.0]])
    own.align_to(words)
    assert own.words.shape == (4, 3)
    fewer = tokenizer(word_dim=3, num_codes=9)
    fewer.align_to(words)
    assert fewer.words.isfinite().all() and len(fewer.words.unique(dim=0)) > 5
    with pytest.raises(ValueError, match=r"tokenizer.word_dim is 4, but the word embeddings have 3 numbers"):
        tokenizer().align_to(words)


def test_it_is_built_again_from_its_config():
    own = tokenizer(pool=2, layer=1)
    again = build_part(own.config_dict()).eval()
    again.load_state_dict(own.state_dict())
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(own.codes(images), again.codes(images))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"tokenizer.layer must be 1 to 2 \(blocks of the encoder\), got 3"):
        tokenizer(layer=3)
    with pytest.raises(ValueError, match=r"tokenizer.num_codes must be at least 1, got 0"):
        tokenizer(num_codes=0)


def test_a_backbone_grows_by_rows_of_the_mean_and_says_the_same():
    torch.manual_seed(0)
    small = BackboneConfig(dim=16, num_layers=1, num_heads=2, num_kv_heads=2, ffn_dim=32).build(20)
    grown = with_more_tokens(small, 30)
    ids = torch.randint(0, 20, (1, 6))
    first, second = (one(one.embed(ids), torch.arange(6)[None]).hidden_states for one in (small, grown))
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(grown.logits(second)[..., :20], small.logits(first))
    torch.testing.assert_close(grown.embedding.weight[20:], small.embedding.weight.mean(0).expand(10, -1))
    assert with_more_tokens(small, 20) is small
    with pytest.raises(ValueError, match="the backbone has 20 tokens, more than the 10 asked for"):
        with_more_tokens(small, 10)
