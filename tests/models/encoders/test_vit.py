import numpy as np
import pytest
import torch

from diptych.models.encoders.vit import VisionTransformer
from diptych.models.part import build_part


def tiny_vit(**changes):
    torch.manual_seed(0)
    config = {"image_size": 32, "patch_size": 8, "dim": 32, "num_layers": 2, "num_heads": 2}
    return VisionTransformer(**(config | changes)).eval()


def images(height=32, width=32, batch=2):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm": "layer", "feed_forward": "gelu", "positions": "learned", "rotary": False, "pooling": "mean"},
        {"pooled_dim": 12, "positions": "none"},
    ],
)
def test_output_shapes_layers_and_round_trip_of_the_config(changes):
    vit = tiny_vit(**changes)
    output = vit(images(), layers=(0, 2))
    assert output.tokens.shape == (2, 16, 32) and output.grid == (4, 4)
    assert output.pooled.shape == (2, changes.get("pooled_dim", 32))
    assert set(output.layer_tokens) == {0, 2}
    torch.testing.assert_close(vit.norm(output.layer_tokens[2]), output.tokens)
    again = build_part(vit.config_dict())
    assert again.config_dict() == vit.config_dict()
    again.load_state_dict(vit.state_dict())
    torch.testing.assert_close(again.eval()(images()).pooled, output.pooled)


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_other_sizes_than_trained_and_non_square_ones(positions):
    vit = tiny_vit(positions=positions, patch_size=4, image_size=32)
    output = vit(images(100, 400, batch=1))
    assert output.grid == (25, 100) and output.tokens.shape == (1, 2500, 32)
    assert torch.isfinite(output.tokens).all()


def test_tokens_are_row_major_and_positions_tell_rows_from_columns():
    """Changing the patch in row 1, column 2 of a 2 x 4 grid changes the embedding of token 6 alone."""
    vit = tiny_vit()
    plain = torch.zeros(1, 3, 16, 32)
    changed = plain.clone()
    changed[:, :, 8:16, 16:24] = 1
    difference = (vit(changed, (0,)).layer_tokens[0] - vit(plain, (0,)).layer_tokens[0]).abs().sum(-1)[0]
    assert difference.nonzero().flatten().tolist() == [6]
    embedding = vit(plain, (0,)).layer_tokens[0][0]
    assert torch.cdist(embedding, embedding).fill_diagonal_(1).min() > 0.1


def test_rotary_positions_alone_let_the_network_see_where_things_are():
    """Without any position code a transformer cannot tell an image from a shuffled one; with rotary ones it can."""
    picture = images(batch=1)
    moved = picture.roll(8, dims=-1)
    blind = tiny_vit(positions="none", rotary=False)
    torch.testing.assert_close(blind(picture).pooled, blind(moved).pooled, rtol=1e-4, atol=1e-5)
    seeing = tiny_vit(positions="none", rotary=True)
    assert (seeing(picture).pooled - seeing(moved).pooled).abs().max() > 1e-3


def test_an_image_does_not_depend_on_its_neighbours():
    vit = tiny_vit()
    batch = images(batch=3)
    torch.testing.assert_close(vit(batch).pooled[1:2], vit(batch[1:2]).pooled, rtol=1e-4, atol=1e-6)


def test_every_parameter_gets_a_gradient_from_the_pooled_output():
    vit = tiny_vit(positions="learned", pooled_dim=8).train()
    vit(images()).pooled.square().sum().backward()
    missing = [name for name, value in vit.named_parameters() if value.grad is None or value.grad.abs().sum() == 0]
    assert missing == []


def test_preprocess_follows_the_policy():
    wide = np.zeros((100, 400, 3), dtype=np.uint8)
    padded = tiny_vit().preprocess(wide)
    assert padded.shape == (3, 32, 32)
    assert padded[:, 12:20].max() == -1 and padded[:, 11].min() == 1  # 8 rows of picture between white bands
    assert tiny_vit(patch_size=4, resize_policy="native").preprocess(wide).shape == (3, 100, 400)
    assert tiny_vit(resize_policy="native").preprocess(wide).shape == (3, 104, 400)
    assert tiny_vit(resize_policy="crop").preprocess(wide, (64, 64)).max() == -1


def test_bfloat16_weights_take_float32_images():
    vit = tiny_vit()
    expected = vit(images()).tokens
    tokens = vit.bfloat16()(images()).tokens
    assert tokens.dtype == torch.bfloat16
    assert (tokens.float() - expected).norm() / expected.norm() < 2e-2


def test_messages():
    with pytest.raises(ValueError, match=r"multiples of 8, got 30x32. Resize them to 24x32 or 32x32"):
        tiny_vit()(images(30, 32))
    with pytest.raises(ValueError, match=r"layers 0 \(embedding\) to 2, but 3 was asked for"):
        tiny_vit()(images(), layers=(3,))
    with pytest.raises(ValueError, match=r"image_size must be a multiple of encoder.patch_size: got 30x30 and 8"):
        tiny_vit(image_size=30)
    with pytest.raises(ValueError, match=r"must be a multiple of encoder.num_heads, got 32 and 3"):
        tiny_vit(num_heads=3)


def test_a_few_steps_separate_two_colours():
    """Trained contrastively on two classes, the pooled outputs of a class agree and those of different ones do not."""
    vit = tiny_vit().train()
    optimizer = torch.optim.AdamW(vit.parameters(), lr=3e-3)
    pictures = images(batch=8)
    pictures[:4, 0] = 1
    pictures[4:, 2] = 1
    labels = torch.tensor([0] * 4 + [1] * 4)
    same = labels[:, None] == labels[None]
    for _ in range(15):
        pooled = torch.nn.functional.normalize(vit(pictures).pooled, dim=-1)
        loss = torch.where(same, 1 - pooled @ pooled.T, (pooled @ pooled.T).relu()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
