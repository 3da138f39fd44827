"""LuminaDiT against the class of diffusers that BLIP3-o trains, both with the same random weights.

Where that class differs from BLIP3-o's use of it: it has no projection of the condition (BLIP3-o puts
``PixArtAlphaTextProjection`` before it, and so does this test), ``learn_sigma`` is off, the mask over the condition is
all ones (the masked case is compared too), ``pad_token`` is declared and never used, the time is a timestep in
thousandths of sigma, and the output points from data to noise. Its feed-forward width is ``8/3 dim`` rounded up to a
multiple; before diffusers 0.33 the factor 2/3 stood inside the feed-forward class, with the same result.
"""

import pytest
import torch
from torch import nn

from diptych.interop.lumina import from_diffusers_lumina, lumina_config, to_diffusers_lumina
from diptych.models.denoisers.lumina import LuminaDiT

pytest.importorskip("diffusers")
from diffusers.models.embeddings import PixArtAlphaTextProjection, get_2d_rotary_pos_embed_lumina
from diffusers.models.transformers.lumina_nextdit2d import LuminaNextDiT2DModel

DIM, NUM_HEADS, NUM_LAYERS, CHANNELS, CONDITION_DIM = 48, 4, 2, 5, 20


class Reference(nn.Module):
    """BLIP3-o's denoiser, put together from diffusers."""

    def __init__(self, patch_size: int, qk_norm: bool) -> None:
        super().__init__()
        self.dit = LuminaNextDiT2DModel(
            sample_size=8,
            patch_size=patch_size,
            in_channels=CHANNELS,
            hidden_size=DIM,
            num_layers=NUM_LAYERS,
            num_attention_heads=NUM_HEADS,
            num_kv_heads=NUM_HEADS,
            multiple_of=32,
            learn_sigma=False,
            qk_norm=qk_norm,
            cross_attention_dim=DIM,
        )
        self.caption_projection = PixArtAlphaTextProjection(CONDITION_DIM, DIM)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():  # far from the start, where gates are zero and norms one
            for name, value in self.named_parameters():
                mean = float(value.ndim == 1 and "norm" in name and "weight" in name)
                std = 0.2 if value.ndim == 1 else 0.7 * value.shape[1] ** -0.5
                nn.init.normal_(value, mean, std, generator=generator)

    def forward(self, x, timestep, condition, mask):
        return self.dit(
            x,
            timestep,
            self.caption_projection(condition),
            mask,
            get_2d_rotary_pos_embed_lumina(DIM // NUM_HEADS, 384, 384),
            cross_attention_kwargs={},
        ).sample

    def weights(self, values: dict[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
        """As BLIP3-o names them: the projection is a child of the transformer."""
        return {prefix + key.removeprefix("dit."): value for key, value in values.items()}


@pytest.mark.parametrize(
    ("patch_size", "size", "qk_norm", "is_masked"),
    [(1, (3, 5), True, False), (1, (4, 4), True, True), (2, (4, 6), True, False), (1, (2, 3), False, False)],
)
def test_output_and_gradients_equal_the_reference(patch_size, size, qk_norm, is_masked):
    reference = Reference(patch_size, qk_norm)
    state = reference.weights(dict(reference.state_dict()))
    model = LuminaDiT(**lumina_config(state, patch_size=patch_size))
    model.load_state_dict(from_diffusers_lumina(state, patch_size=patch_size))
    assert model.ffn_dim == 128 and model.time_dim == 48 and model.qk_norm == qk_norm

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, CHANNELS, *size, generator=generator).requires_grad_()
    condition = torch.randn(3, 7, CONDITION_DIM, generator=generator).requires_grad_()
    direction = torch.randn(3, CHANNELS, *size, generator=generator)
    t = torch.tensor([0.0, 0.37, 0.9])
    mask = torch.ones(3, 7, dtype=torch.bool)
    if is_masked:
        mask[0, 4:], mask[2, 1:] = False, False

    expected = reference(x, 1000 * (1 - t), condition, mask)
    ours = model(x, t, condition, mask if is_masked else None)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours, -expected, rtol=1e-4, atol=1e-5)  # data - noise against noise - data

    parameters = {name: value for name, value in reference.named_parameters() if not name.endswith("pad_token")}
    theirs = torch.autograd.grad((expected * direction).sum(), [x, condition, *parameters.values()])
    given = torch.autograd.grad((-ours * direction).sum(), [x, condition, *model.parameters()])
    for a, b in zip(given[:2], theirs[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    names = [name for name, _ in model.named_parameters()]
    gradients = dict(zip(names, given[2:], strict=True))
    reference_gradients = from_diffusers_lumina(
        reference.weights(dict(zip(parameters, theirs[2:], strict=True))), patch_size=patch_size
    )
    assert gradients.keys() == reference_gradients.keys()
    for name, gradient in gradients.items():
        # A constant added to all keys of the cross-attention, which are not turned, leaves the softmax as it is.
        assert gradient.abs().max() > 1e-4 or name.endswith("cross_key_norm.bias"), name
        torch.testing.assert_close(gradient, reference_gradients[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_condition_encoded_once_gives_the_same_output():
    reference = Reference(1, True)
    state = reference.weights(dict(reference.state_dict()))
    model = LuminaDiT(**lumina_config(state))
    model.load_state_dict(from_diffusers_lumina(state))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, CHANNELS, 4, 4, generator=generator)
    condition = torch.randn(3, 7, CONDITION_DIM, generator=generator)
    mask = torch.arange(7) < torch.tensor([[7], [3], [1]])
    encoded = model.encode_condition(condition, mask)
    for t in (0.0, 0.6):
        times = torch.full((3,), t)
        torch.testing.assert_close(model(x, times, encoded), model(x, times, condition, mask))
        torch.testing.assert_close(
            model(x[1:], times[1:], encoded.select(slice(1, 3))), model(x[1:], times[1:], condition[1:], mask[1:])
        )


@pytest.mark.parametrize("patch_size", [1, 2])
def test_weights_survive_the_round_trip(patch_size):
    reference = Reference(patch_size, True)
    state = reference.weights(dict(reference.state_dict()), prefix="model.dit.model.")
    del state["model.dit.model.pad_token"]
    other = {"model.latent_queries": torch.zeros(1, 2, 3)}
    ours = from_diffusers_lumina(state | other, "model.dit.model.", patch_size)
    back = to_diffusers_lumina(ours, "model.dit.model.", patch_size)
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(back[key], value), key


def test_foreign_keys_are_refused():
    with pytest.raises(ValueError, match=r"no key starts with 'dit\.'; the first is 'layers\.0\.gate'"):
        from_diffusers_lumina({"layers.0.gate": torch.zeros(4)}, "dit.")
    with pytest.raises(ValueError, match=r"1 keys belong to no layer of the Lumina-Next .* 'layers\.0\.attn3"):
        from_diffusers_lumina({"layers.0.attn3.to_q.weight": torch.zeros(4, 4)})
    with pytest.raises(ValueError, match=r"1 keys are no weights of LuminaDiT, such as 'layers\.0\.gate'"):
        to_diffusers_lumina({"layers.0.gate": torch.zeros(4)})
