"""Shapes by key of BLIP3-o's released denoiser and vision tower, written down from the released modules."""


def released_denoiser(condition_dim):
    """Shapes by key as published, written down from the released modules."""
    dim, time = 1792, 1024
    keys = {
        "caption_projection.linear_1.weight": (dim, condition_dim),
        "caption_projection.linear_1.bias": (dim,),
        "caption_projection.linear_2.weight": (dim, dim),
        "caption_projection.linear_2.bias": (dim,),
        "patch_embedder.proj.weight": (dim, dim),
        "patch_embedder.proj.bias": (dim,),
        "time_caption_embed.timestep_embedder.linear_1.weight": (time, 256),
        "time_caption_embed.timestep_embedder.linear_1.bias": (time,),
        "time_caption_embed.timestep_embedder.linear_2.weight": (time, time),
        "time_caption_embed.timestep_embedder.linear_2.bias": (time,),
        "time_caption_embed.caption_embedder.0.weight": (dim,),
        "time_caption_embed.caption_embedder.0.bias": (dim,),
        "time_caption_embed.caption_embedder.1.weight": (time, dim),
        "time_caption_embed.caption_embedder.1.bias": (time,),
        "norm_out.linear_1.weight": (dim, time),
        "norm_out.linear_1.bias": (dim,),
        "norm_out.linear_2.weight": (dim, dim),
        "norm_out.linear_2.bias": (dim,),
    }
    for i in range(24):
        block = {
            f"{norm}.weight": (dim,) for norm in ("norm1.norm", "norm2", "ffn_norm1", "ffn_norm2", "norm1_context")
        }
        block |= {"gate": (28,), "norm1.linear.weight": (4 * dim, time), "norm1.linear.bias": (4 * dim,)}
        for attention in ("attn1", "attn2"):
            block |= {f"{attention}.to_{part}.weight": (dim, dim) for part in "qkv"}
            block |= {f"{attention}.norm_{part}.{kind}": (dim,) for part in "qk" for kind in ("weight", "bias")}
        block["attn2.to_out.0.weight"] = (dim, dim)
        block |= {f"feed_forward.linear_{i}.weight": (4864, dim) for i in (1, 3)}
        block["feed_forward.linear_2.weight"] = (dim, 4864)
        keys |= {f"layers.{i}.{name}": shape for name, shape in block.items()}
    return keys


def released_keys():
    """Shapes by key as published, written down from the released modules."""
    keys = {
        "cls_token": (1, 1, 1792),
        "pos_embed": (1, 1025, 1792),
        "patch_embed.proj.weight": (1792, 3, 14, 14),
        "patch_embed.proj.bias": (1792,),
    }
    for i in range(64):
        block = {"norm1": (1792,), "norm2": (1792,), "attn.qkv": (5376, 1792), "attn.proj": (1792, 1792)}
        block |= {"mlp.fc1": (15360, 1792), "mlp.fc2": (1792, 15360)}
        for name, shape in block.items():
            keys |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
    return keys
