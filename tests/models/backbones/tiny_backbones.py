"""Tiny models of transformers with random weights, and inputs for them."""

import torch

VOCAB = 96
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10_000.0}
VISION_25 = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
VISION_3 = {**VISION_25, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}


def foreign_model(name: str):
    """A tiny model of transformers with random weights; weights are wide, so that a wrong mask shows."""
    import transformers as hf

    if name == "qwen2":
        model = hf.Qwen2ForCausalLM(hf.Qwen2Config(**COMMON, tie_word_embeddings=True))
    elif name == "qwen3":
        model = hf.Qwen3ForCausalLM(hf.Qwen3Config(**COMMON, head_dim=16, tie_word_embeddings=False))
    elif name == "gpt2":
        config = hf.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=128)
        model = hf.GPT2LMHeadModel(config)
    elif name in ("llama", "llama_eager"):
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**COMMON))
    elif name == "qwen2_5_vl":
        text = {**COMMON, "rope_parameters": MROPE}
        config = hf.Qwen2_5_VLConfig(text_config=text, vision_config=VISION_25, tie_word_embeddings=True)
        model = hf.Qwen2_5_VLForConditionalGeneration(config)
    elif name == "qwen3_vl":
        text = {**COMMON, "head_dim": 8, "rope_parameters": {**MROPE, "mrope_interleaved": True}}
        config = hf.Qwen3VLConfig(text_config=text, vision_config=VISION_3, tie_word_embeddings=False)
        model = hf.Qwen3VLForConditionalGeneration(config)
    else:
        raise KeyError(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    return model.eval()


FOREIGN = ("qwen2", "qwen3", "llama", "llama_eager", "gpt2", "qwen2_5_vl", "qwen3_vl")


def tokens(batch: int, seq: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, seq), generator=torch.Generator().manual_seed(seed))


def positions(batch: int, seq: int, start: int = 0) -> torch.Tensor:
    return torch.arange(start, start + seq).repeat(batch, 1)
