"""Makes ``blip3o_{dit,eva,stage1,decoder}.npz``: BLIP3-o's released networks and samplers at small size.

Run as ``PYTHONPATH=CODE python -m tests.golden.make_blip3o`` from the root of this repository, where CODE holds four
files of JiuhaiChen/BLIP3o at 4689ec3 side by side: ``lumina_nextdit2d.py``, ``nextdit_crossattn.py``, ``eva_vit.py``
(of ``eva_clip/``) and ``blip3o_qwen_inference.py``; and ``pipeline_emu2_gen.py`` of its commit 7bfef50, whose sampler
is that of the pipeline beside the weights, line by line. The stored files were made with torch 2.13.0, transformers
5.23.0 and diffusers 0.42.1 on a CPU, one thread, float32 (EVA's
tower: float64). What the released code needs and is not there is replaced so
that it computes the same: the download at import does nothing; three helpers of timm are written out; attention is the
plain one of the same file, not xformers'; the feed-forward class is given two thirds of its width, as it took them
itself up to diffusers 0.32; the scheduler is made with its defaults, which are those of the one that would be
downloaded.

Each file holds ``layout`` (JSON, shape by key; weights are `drawn_weights.draw_weights(layout, seed=0)`), the inputs in
the released convention, the output, and for the networks and the query path ``grad/*`` of
``sum(output * direction)`` (there of the condition, to the queries and the layers of the language model).
"""

import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import diffusers
import huggingface_hub
import numpy as np
import torch
from diffusers.models import attention

from tests.golden.drawn_weights import draw_weights

FOLDER = Path(__file__).parent
VOCAB, DIM, NUM_QUERIES = 151_668, 16, 6


def import_released():
    """The modules, with stand-ins for what they import."""
    huggingface_hub.snapshot_download = lambda **_: ""
    timm = ModuleType("timm.layers")
    timm.drop_path = lambda x, *_: x
    timm.to_2tuple = lambda x: (x, x)
    timm.trunc_normal_ = torch.nn.init.trunc_normal_
    package = {"timm": ModuleType("timm"), "timm.layers": timm}
    for name in ("blip3o", "blip3o.model", "blip3o.model.blip3o_arch", "blip3o.constants"):
        package[name] = ModuleType(name)
    package["blip3o.model.blip3o_arch"].blip3oMetaModel = type("Meta", (), {})
    package["blip3o.model.blip3o_arch"].blip3oMetaForCausalLM = type("MetaLM", (), {})
    package["blip3o.constants"].UND_IMAGE_TOKEN_IDX = 151655
    sys.modules |= package
    import lumina_nextdit2d

    sys.modules["blip3o.model.lumina_nextdit2d"] = lumina_nextdit2d

    def feed_forward(dim, inner_dim, multiple_of, ffn_dim_multiplier):
        return attention.LuminaFeedForward(dim, int(2 * inner_dim / 3), multiple_of, ffn_dim_multiplier)

    lumina_nextdit2d.LuminaFeedForward = feed_forward
    import blip3o_qwen_inference
    import eva_vit
    import nextdit_crossattn
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPImageProcessor

    assert all((StableDiffusionSafetyChecker, AutoModelForCausalLM, AutoTokenizer, CLIPImageProcessor))
    sys.modules["torchvision"] = ModuleType("torchvision")  # after all that asks whether it is there
    sys.modules["torchvision"].transforms = None
    import pipeline_emu2_gen

    del sys.modules["torchvision"]
    record_decoder(pipeline_emu2_gen.EmuVisualGenerationPipeline)
    return eva_vit, nextdit_crossattn, blip3o_qwen_inference


def fill(network, seed=0):
    """Draws the network's weights; returns their layout."""
    layout = {key: list(value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict({key: torch.from_numpy(value) for key, value in draw_weights(layout, seed).items()})
    return layout


def write(name, layout, output, gradients=None, **inputs):
    arrays = {key: value.detach().numpy() for key, value in {**inputs, "output": output, **(gradients or {})}.items()}
    np.savez_compressed(FOLDER / f"{name}.npz", layout=np.array(json.dumps(layout)), **arrays)


def normal(*shape):
    return torch.from_numpy(np.random.RandomState(sum(shape)).standard_normal(shape).astype(np.float32))


def gradients_of(network, output, direction, **inputs):
    (output * direction).sum().backward()
    return {f"grad/{key}": value.grad for key, value in inputs.items()} | {
        f"grad/{key}": weight.grad for key, weight in network.named_parameters() if weight.grad is not None
    }


def nextdit(module):
    config = module.NextDiTCrossAttnConfig(
        input_size=4, in_channels=8, dim=DIM, n_layers=2, n_heads=2, n_kv_heads=2, multiple_of=8,
        latent_embedding_size=DIM, _gradient_checkpointing=False,
    )  # fmt: skip
    return module.NextDiTCrossAttn(config)


def main():
    torch.set_num_threads(1)
    eva_vit, nextdit_crossattn, inference = import_released()
    record_eva(eva_vit)

    network = nextdit(nextdit_crossattn)
    layout = fill(network)
    x, z = normal(3, 8, 4, 4).requires_grad_(), normal(3, NUM_QUERIES, DIM).requires_grad_()
    timestep, direction = torch.tensor([1000, 500, 125]), normal(3, 8, 4, 4, 1)[..., 0]
    output = network(x=x, timestep=timestep, z_latents=z)
    gradients = gradients_of(network, output, direction, x=x, z=z)
    write("blip3o_dit", layout, output, gradients, x=x, z=z, timestep=timestep, direction=direction)

    record_stage1(nextdit_crossattn, inference)


def record_eva(eva_vit):
    tower = eva_vit.EVAVisionTransformer(
        img_size=12, patch_size=4, embed_dim=DIM, depth=3, num_heads=2, mlp_ratio=8.571428571428571, qkv_bias=True,
        norm_layer=eva_vit.create_norm_layer_factory(False, eps=1e-6), xattn=False, postnorm=True,
    )  # fmt: skip
    layout = fill(tower)
    tower.double()  # gradients are sums of up to 50, of which float32 would record no more than 1e-5
    pixels, direction = normal(2, 3, 12, 12).double().requires_grad_(), normal(2, 9, DIM).double()
    output = tower(pixels, return_all_features=True)[:, 1:, :]
    gradients = gradients_of(tower, output, direction, pixels=pixels)
    write("blip3o_eva", layout, output, gradients, pixels=pixels, direction=direction)


def record_stage1(nextdit_crossattn, inference):
    """Token ids -> condition (``generate_image``) -> features (``sample_images``), by the released functions."""
    from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

    config = Qwen2_5_VLTextConfig(
        vocab_size=VOCAB, hidden_size=DIM, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e6},
    )  # fmt: skip
    language_model = Qwen2_5_VLTextModel(config).eval()
    language_model.latent_queries = torch.nn.Parameter(torch.zeros(1, NUM_QUERIES, DIM))
    language_model.dit = nextdit(nextdit_crossattn).eval()
    layout = fill(language_model)
    ids = torch.tensor(
        [[151644, 8948, 198, 2610, 151645, 198, 151644, 872, 198, 5501, 151645, 198, 151644, 77091, 198]]
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler
    scheduler.from_pretrained = classmethod(lambda cls, *_, **__: cls())
    seen = {}

    def keep(condition, scheduler):
        seen["condition"] = condition
        return torch.zeros(1, 1792, 8, 8)

    def forward(inputs_embeds, attention_mask, **kwargs):
        # one entry short in the released code, which its versions of the libraries passed over: all ones
        assert attention_mask.all() and attention_mask.shape[1] == inputs_embeds.shape[1] - 1
        return language_model(inputs_embeds=inputs_embeds, **kwargs)

    model = SimpleNamespace(
        get_model=lambda: language_model, get_n_query=lambda: NUM_QUERIES, model=forward, sample_images=keep
    )
    cls = inference.blip3oQwenForInferenceLM
    tokenized = SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids))
    direction = normal(1, NUM_QUERIES, DIM)
    generate = cls.generate_image.__wrapped__  # without its no_grad: what the queries learn from
    generate(model, text=["…"], tokenizer=lambda *_, **__: tokenized)
    (seen["condition"] * direction).sum().backward()
    condition = seen["condition"].detach()
    arrays = {"ids": ids, "condition": condition, "direction": direction}
    learnt = ("latent_queries", "layers.", "norm.")
    arrays |= {
        f"grad/{key}": weight.grad for key, weight in language_model.named_parameters() if key.startswith(learnt)
    }
    for steps in (30, 7):
        generator = torch.Generator().manual_seed(steps)
        sampled = cls.sample_images(model, condition, scheduler(), generator=generator, num_inference_steps=steps)
        arrays[f"noise_{steps}"] = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(steps))
        arrays[f"features_{steps}"] = sampled
        told = scheduler()
        told.set_timesteps(steps, sigmas=np.linspace(1.0, 1 / steps, steps))
        arrays[f"timesteps_{steps}"] = told.timesteps.long()
    write("blip3o_stage1", layout, arrays.pop("features_30"), **arrays)


def record_decoder(pipeline):
    """The features of a prompt and of a blank -> image before the last rounding, by the released pipeline's call."""
    channels = 12
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), layers_per_block=1, norm_num_groups=4,
        attention_head_dim=(2, 2), transformer_layers_per_block=(1, 1), use_linear_projection=True,
        cross_attention_dim=channels, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=channels + 6 * 8,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4, scaling_factor=0.13025,
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    network = torch.nn.ModuleDict({"unet": unet, "vae": vae}).eval()
    layout = fill(network)
    features, null = normal(1, 4, channels), normal(4, channels)[None]
    told = {"a prompt": features, "": null}
    encoder = SimpleNamespace(
        model=SimpleNamespace(gen_vision_tower=torch.nn.Linear(1, 1)), generate_image=lambda text, **_: told[text[0]]
    )
    seen = {}
    self = SimpleNamespace(
        unet=unet, vae=vae, scheduler=scheduler, vae_scale_factor=2, multimodal_encoder=encoder, tokenizer=None,
        negative_prompt={}, safety_checker=None, numpy_to_pil=lambda images: [seen.setdefault("image", images)],
    )  # fmt: skip
    for name in ("device", "dtype", "_prepare_and_encode_inputs", "decode_latents", "run_safety_checker"):
        setattr(self, name, partial(getattr(pipeline, name), self))
    torch.manual_seed(3)
    noise = torch.randn(1, 4, 8, 8)
    torch.manual_seed(3)
    pipeline.__call__(self, ["a prompt"], height=16, width=16, original_size=[16, 16], num_inference_steps=5)
    image = torch.from_numpy(seen["image"])
    config = {"unet": dict(unet.config), "vae": dict(vae.config), "scheduler": dict(scheduler.config)}
    text = np.frombuffer(json.dumps(config, default=list).encode(), dtype=np.uint8).copy()
    write("blip3o_decoder", layout, image, features=features, null=null, noise=noise, config=torch.from_numpy(text))


if __name__ == "__main__":
    main()
