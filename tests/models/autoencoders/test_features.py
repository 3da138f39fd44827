import pytest
import torch

from diptych.interop.cifar_resnet import CifarResNet
from diptych.models.autoencoders.features import FeatureAutoencoder
from diptych.models.autoencoders.protocol import add_latent_noise, measure_shift_scale
from diptych.models.encoders.vit import VisionTransformer
from diptych.models.part import build_part
from diptych.objectives.reconstruction import psnr, reconstruction_loss


def tiny_autoencoder(patch_size=4, **changes):
    torch.manual_seed(0)
    encoder = VisionTransformer(image_size=32, patch_size=patch_size, dim=32, num_layers=3, num_heads=2)
    config = {"decoder_dim": 32, "decoder_layers": 1, "decoder_heads": 2}
    return FeatureAutoencoder(encoder=encoder, **(config | changes))


def images(height=32, width=32, batch=2):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({}, (32, 8, 8)),
        ({"channels": 6, "pool": 2}, (6, 4, 4)),
        ({"channels": 6, "pool": 2, "pool_mode": "concat", "decoder_patch_size": 2}, (6, 4, 4)),
        ({"pool": 2, "pool_mode": "concat", "layers": (1, 3), "aggregate": "sum", "latent_norm": True}, (128, 4, 4)),
    ],
)
def test_shapes_and_round_trip_of_config_and_weights(changes, shape):
    space = tiny_autoencoder(**changes)
    latents = space.encode(images())
    assert latents.shape == (2, *shape) and space.latent_shape(32, 32) == shape
    assert space.channels == shape[0]
    decoded = space.decode(latents)
    assert decoded.shape == (2, 3, 32, 32) and decoded.abs().max() <= 1
    space.measure([latents])
    again = build_part(space.config_dict())
    assert again.config_dict() == space.config_dict()
    again.load_state_dict(space.state_dict())
    torch.testing.assert_close(again.encode(images()), space.encode(images()))


def test_non_square_images():
    space = tiny_autoencoder(pool=1)
    assert space.latent_shape(100, 400) == (32, 25, 100)
    assert space.decode(space.encode(images(100, 400, batch=1))).shape == (1, 3, 100, 400)


def test_pooling_averages_the_right_tokens():
    space = tiny_autoencoder(pool=2)
    output = space.encoder(images(16, 32))
    grid = output.tokens.reshape(2, 4, 8, 32)
    torch.testing.assert_close(space.encode(images(16, 32))[:, :, 1, 2], grid[:, 2:4, 4:6].mean((1, 2)))
    concat = tiny_autoencoder(pool=2, pool_mode="concat")
    expected = grid[:, 2:4, 4:6].reshape(2, 4 * 32)
    torch.testing.assert_close(concat.encode(images(16, 32))[:, :, 1, 2], expected)


def test_several_layers_are_normalised_before_they_are_combined():
    space = tiny_autoencoder(layers=(1, 3), aggregate="mean")
    with torch.no_grad():
        before = space.encode(images())
        layers = space.encoder(images(), (1, 3)).layer_tokens
    normed = [(layers[i] - layers[i].mean(-1, True)) / layers[i].std(-1, unbiased=False, keepdim=True) for i in (1, 3)]
    expected = (sum(normed) / 2).transpose(1, 2).reshape(2, 32, 8, 8)
    torch.testing.assert_close(before, expected, rtol=1e-3, atol=1e-4)
    summed = tiny_autoencoder(layers=(1, 3), aggregate="sum").encode(images())
    torch.testing.assert_close(summed, before * 2)


def test_measured_latents_have_unit_std_and_decode_as_before():
    space = tiny_autoencoder(channels=6, pool=2)
    batches = [images(batch=5), images(batch=3) * 0.3]
    with torch.no_grad():
        painted = space.decode(space.encode(batches[0]))
        space.measure(space.encode(batch) for batch in batches)
        latents = torch.cat([space.encode(batch) for batch in batches])
        torch.testing.assert_close(space.decode(space.encode(batches[0])), painted, rtol=1e-4, atol=1e-5)
        assert latents.mean((0, 2, 3)).abs().max() < 1e-4
        assert (latents.std((0, 2, 3)) - 1).abs().max() < 5e-3
        space.measure([latents])  # measuring again changes next to nothing: shift and scale compose
        assert (torch.cat([space.encode(batch) for batch in batches]) - latents).abs().max() < 1e-2


def test_scales_of_mean_and_detail_change_the_latents_and_not_what_the_decoder_sees():
    plain, scaled = (
        tiny_autoencoder(channels=6, pool=2),
        tiny_autoencoder(channels=6, pool=2, mean_scale=0.5, detail_scale=3.0),
    )
    scaled.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for space in (plain, scaled):
            space.measure([space.encode(images(batch=5))])
        before = plain.encode(images()) * plain.scale + plain.shift
        after = scaled.encode(images()) * scaled.scale + scaled.shift
        torch.testing.assert_close(after.mean((2, 3)), 0.5 * before.mean((2, 3)))
        mean = before.mean((2, 3), keepdim=True)
        torch.testing.assert_close(after - after.mean((2, 3), keepdim=True), 3 * (before - mean), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(scaled.decode(scaled.encode(images())), plain.decode(plain.encode(images())))
    with pytest.raises(ValueError, match=r"must be above 0, got 0.0 and 1.0"):
        tiny_autoencoder(mean_scale=0.0)


def test_the_gate_leaves_cells_that_hold_something_and_gives_the_others_their_mean():
    space = tiny_autoencoder(channels=6, pool=2, num_labels=2, gate=True)
    with torch.no_grad():
        cells = space.cells(images())
        held = torch.zeros(2, 4, 4, dtype=torch.bool)
        held[0, 1, 2] = held[1, 0] = True
        gated = space.gated(cells, held)
        torch.testing.assert_close(gated[0, :, 1, 2], cells[0, :, 1, 2])
        torch.testing.assert_close(gated[1, :, 0], cells[1, :, 0])
        rest = cells[1, :, 1:].mean((1, 2))
        torch.testing.assert_close(gated[1, :, 1:], rest[:, None, None].expand(6, 3, 4))
        everything = torch.ones(2, 4, 4, dtype=torch.bool)
        torch.testing.assert_close(space.gated(cells, everything), cells)
        told = space.gate_logits(cells) > 0
        torch.testing.assert_close(space.features(images()), space.gated(cells, told))
        assert 0 < told.sum() < told.numel()  # else the line above would show little
    again = build_part(space.config_dict())
    again.load_state_dict(space.state_dict())
    with pytest.raises(ValueError, match=r"features.gate is trained on the first label: give features.num_labels"):
        tiny_autoencoder(gate=True)


def test_statistics_over_uneven_batches_equal_those_over_all():
    values = torch.randn(7, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 3 + 100
    mean, std = measure_shift_scale([values[:1], values[1:5], values[5:]], eps=0.0)
    torch.testing.assert_close(mean.flatten(), values.double().mean((0, 2, 3)).float())
    torch.testing.assert_close(std.flatten(), values.double().std((0, 2, 3), unbiased=False).float())
    with pytest.raises(ValueError, match="latents of no images"):
        measure_shift_scale([])


def test_another_stride_resamples_before_the_encoder():
    """Patches of 4 read, of 8 painted (RAE: 14 read, 16 painted): a 64-pixel image is seen at 32 pixels."""
    space = tiny_autoencoder(decoder_patch_size=8, upsample=1)
    assert space.latent_shape(64, 64) == (32, 8, 8)
    flat = torch.full((1, 3, 64, 64), 0.5)
    torch.testing.assert_close(space.encode(flat), tiny_autoencoder().encode(flat[..., :32, :32]), rtol=1e-4, atol=1e-5)
    assert space.decode(space.encode(flat)).shape == (1, 3, 64, 64)


def test_latent_noise_has_a_level_for_every_image():
    latents = torch.zeros(4000, 2, 4, 4)
    noised = add_latent_noise(latents, 0.8, torch.Generator().manual_seed(0))
    again = add_latent_noise(latents, 0.8, torch.Generator().manual_seed(0))
    torch.testing.assert_close(noised, again)
    # the variance of U(0, tau) * n is tau^2 / 3
    assert noised.var().item() == pytest.approx(0.8**2 / 3, rel=0.05)
    stds = noised.flatten(1).std(1)
    assert stds.min() < 0.05 and stds.max() > 0.7
    torch.testing.assert_close(add_latent_noise(latents + 1, 0.0, torch.Generator()), latents + 1)


def test_a_frozen_encoder_stays_without_gradient_while_bottleneck_and_decoder_learn():
    space = tiny_autoencoder(channels=6, pool=2)
    space.encoder.requires_grad_(False)
    reconstruction_loss(space.paint(space.features(images())), images()).sum().backward()
    with_gradient = {name.split(".")[0] for name, value in space.named_parameters() if value.grad is not None}
    assert with_gradient == {"bottleneck", "decoder"}


def test_bfloat16_autocast_stays_close():
    space = tiny_autoencoder(channels=6, pool=2, layers=(2, 3))
    with torch.no_grad():
        expected = space.features(images())
        with torch.autocast("cpu", torch.bfloat16):
            latents = space.features(images())
            painted = space.paint(latents)
    assert (latents.float() - expected).norm() / expected.norm() < 2e-2
    assert (painted.float() - space.paint(expected)).norm() / painted.float().norm() < 4e-2  # two networks in a row


def test_networks_with_stages_give_their_last_layer_only():
    torch.manual_seed(0)
    space = FeatureAutoencoder(encoder=CifarResNet(depth=8).eval(), decoder_dim=32, decoder_layers=1, layers=(3,))
    assert space.encode(images()).shape == (2, 64, 8, 8)
    lower = FeatureAutoencoder(encoder=CifarResNet(depth=8).eval(), decoder_dim=32, decoder_layers=1, layers=(1, 3))
    with pytest.raises(ValueError, match=r"layers \[1, 3\] have other grids or widths than the encoder's last layer"):
        lower.encode(images())


def test_the_decoder_learns_one_batch():
    space = tiny_autoencoder(patch_size=8, channels=16, pool=1, decoder_dim=48)
    ramp = torch.linspace(-1, 1, 32)
    pictures = torch.stack([ramp.expand(3, 32, 32), ramp.flip(0)[:, None].expand(3, 32, 32)])
    optimizer = torch.optim.AdamW(space.parameters(), lr=4e-3, weight_decay=0.0)
    start = reconstruction_loss(space.paint(space.features(pictures)), pictures).mean().item()
    for _ in range(80):
        loss = reconstruction_loss(space.paint(space.features(pictures)), pictures, mse_weight=1.0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        decoded = space.decode(space.encode(pictures))
    assert reconstruction_loss(decoded, pictures).mean() < start / 20
    assert psnr(decoded, pictures).min() > 25


def test_messages():
    with pytest.raises(ValueError, match=r"feature autoencoder takes .* multiples of 8, got 36x32. Use 32x32 or 40x32"):
        tiny_autoencoder(pool=2).encode(images(36, 32))
    with pytest.raises(ValueError, match=r"decoder_patch_size must divide the 8 pixels of a latent .*got 3"):
        tiny_autoencoder(pool=2, decoder_patch_size=3)
    with pytest.raises(ValueError, match=r"features.layers must be 1 to 3 \(blocks of the encoder\), got \[0, 4\]"):
        tiny_autoencoder(layers=(0, 4))
