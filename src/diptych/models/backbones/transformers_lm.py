"""Any decoder language model of ``transformers`` as a backbone, and the language part of Qwen-VL models.

The model's own forward is used, with our embeddings, positions, mask and cache. Three traps of it are closed here: it
guesses packed sequences from positions when it is given no mask, its caches change in place, and random weights take
the place of missing ones in silence.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.models.attention import causal_mask, check_layers, check_mask, see_own_key
from diptych.models.backbones.cache import CacheExtension, KeyValueCache, check_cache
from diptych.models.backbones.protocol import BackboneOutput, Cache
from diptych.models.part import part_kind

AttentionKind = Literal["sdpa", "eager"]
_RESCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class TransformersBackbone(nn.Module):
    """A decoder of ``transformers`` with random weights; ``load_backbone`` gives the trained ones.

    Args:
        config: the language model's configuration as a dictionary with its ``model_type``. That of a vision-language
            model is cut to its language part.
        attention: ``sdpa``, or ``eager`` for the few models that have nothing else.

    Raises:
        ValueError: the model is no plain decoder (linear or chunked attention, rescaled logits).
    """

    def __init__(self, *, config: dict[str, Any], attention: AttentionKind = "sdpa") -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        given = AutoConfig.for_model(**config)
        text_config = given.get_text_config(decoder=True)
        tied = bool(given.tie_word_embeddings)
        _refuse_unknown_kinds(text_config)
        self._text_config = text_config
        self.attention = attention
        self.dim: int = text_config.hidden_size
        self.vocab_size: int = text_config.vocab_size
        self.num_layers: int = text_config.num_hidden_layers
        self.max_position: int = text_config.max_position_embeddings
        self.position_axes = len(_mrope_section(text_config)) or 1
        # The default dtype, not the one that a released configuration names: precision is the caller's choice.
        self.model: Any = AutoModel.from_config(
            text_config, attn_implementation=attention, dtype=torch.get_default_dtype()
        )
        _decoder_layers(self.model)
        self.lm_head = None if tied else nn.Linear(self.dim, self.vocab_size, bias=False)

    def embed(self, token_ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq dim"]:
        return self.model.get_input_embeddings()(token_ids)

    def forward(
        self,
        embeddings: Float[Tensor, "batch seq dim"],
        positions: Int[Tensor, "batch seq"] | Int[Tensor, "batch seq axes"],
        mask: Bool[Tensor, "batch seq keys"] | None = None,
        cache: Cache | None = None,
        layers: Sequence[int] = (),
    ) -> BackboneOutput:
        """One pass; see the protocol. Models with M-RoPE also take three positions per token (time, row, column).

        Raises:
            ValueError: positions with another number of axes, a mask or a cache of another shape, an unknown layer,
                more keys than a sliding window, or a cache together with gradient checkpointing.
        """
        batch, seq = embeddings.shape[:2]
        check_layers(layers, self.num_layers)
        past = None if cache is None else check_cache(cache, batch, self.num_layers)
        keys = seq + (0 if past is None else past.length)
        check_mask(mask, batch, seq, keys)
        self._check_window(keys)
        first = _decoder_layers(self.model)[0]
        is_checkpointed = self.model.training and getattr(first, "gradient_checkpointing", False)
        if is_checkpointed and past is not None:
            raise ValueError(
                "backbone: transformers drops the cache while it checkpoints gradients. "
                "Call gradient_checkpointing_disable(), or pass prefix and queries in one pass without a cache."
            )
        if is_checkpointed and mask is None:
            mask = causal_mask(seq, keys, embeddings.device).expand(batch, -1, -1)
        extension = None if past is None else CacheExtension(past, seq)
        recorded = {0: embeddings} if 0 in layers else {}
        hooks = [self._record(recorded, layer) for layer in set(layers) if layer > 0]
        try:
            hidden_states = self.model(
                inputs_embeds=embeddings,
                position_ids=self._position_ids(positions),
                attention_mask=None if mask is None else self._attention_mask(mask, embeddings.dtype),
                # Never None without a mask: the model would then look for packed sequences in the positions.
                past_key_values=None if is_checkpointed else _foreign_cache(past, extension, self.num_layers),
                use_cache=not is_checkpointed,
            ).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        return BackboneOutput(hidden_states, None if extension is None else extension.finish(), recorded)

    def new_cache(self) -> KeyValueCache:
        """An empty cache."""
        return KeyValueCache()

    def logits(self, hidden_states: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows vocab"]:
        if self.lm_head is not None:
            return self.lm_head(hidden_states)
        return F.linear(hidden_states, self.model.get_input_embeddings().weight)

    def config_dict(self) -> dict[str, Any]:
        """What is needed to build the same backbone again, JSON-able."""
        config = self._text_config.to_diff_dict()
        config |= {"model_type": self._text_config.model_type, "tie_word_embeddings": self.lm_head is None}
        for name in ("dtype", "transformers_version", "_attn_implementation_autoset"):
            config.pop(name, None)
        return {"kind": part_kind(self), "config": config, "attention": self.attention}

    def _position_ids(self, positions: Tensor) -> Tensor:
        if positions.ndim == 3 and positions.shape[2] != self.position_axes:
            raise ValueError(
                f"{self._text_config.model_type} takes positions of shape (batch, seq)"
                + (f" or (batch, seq, {self.position_axes})" if self.position_axes > 1 else "")
                + f", got {tuple(positions.shape)}."
            )
        if self.position_axes == 1:
            return positions.reshape(positions.shape[:2])
        if positions.ndim == 2:
            positions = positions.unsqueeze(-1).expand(-1, -1, self.position_axes)
        return positions.permute(2, 0, 1)

    def _attention_mask(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """The 4-D mask that transformers passes on as it is: boolean for sdpa, added to the scores for eager."""
        mask = see_own_key(mask).unsqueeze(1)
        if self.attention == "sdpa":
            return mask
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)

    def _check_window(self, keys: int) -> None:
        """Our masks are not combined with a model's sliding window, which is right as long as all keys fit into it."""
        window = getattr(self._text_config, "sliding_window", None)
        if window is not None and keys > window:
            raise ValueError(
                f"backbone: {keys} positions are more than the sliding window of {window} of this "
                f"{self._text_config.model_type}, and windows are not supported. Shorten the sequence."
            )

    def _record(self, recorded: dict[int, Tensor], layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            recorded[layer] = output[0] if isinstance(output, tuple) else output

        return _decoder_layers(self.model)[layer - 1].register_forward_hook(hook)


def load_backbone(
    path_or_id: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attention: AttentionKind = "sdpa",
    revision: str | None = None,
) -> TransformersBackbone:
    """The language model of a folder written by ``save_pretrained``, or of a hub id, with its weights.

    Of a vision-language model only the language part is kept. Only safetensors are read.

    Raises:
        FileNotFoundError: there is no such folder, or no weights as safetensors in it.
        ValueError: weights are missing, or the model is no plain decoder.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    source = str(path_or_id)
    looks_local = Path(path_or_id).is_absolute() or source.startswith(".") or source.count("/") > 1
    if (Path(path_or_id).is_dir() or looks_local) and not (Path(path_or_id) / "config.json").is_file():
        raise FileNotFoundError(f"backbone: {source}/config.json is missing. Name a folder made by save_pretrained.")
    config = AutoConfig.from_pretrained(source, revision=revision or "main")
    text_config = config.get_text_config(decoder=True)
    _refuse_unknown_kinds(text_config)
    loader: Any = AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForImageTextToText
    try:
        loaded, info = loader.from_pretrained(
            source,
            revision=revision or "main",
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            output_loading_info=True,
        )
    except OSError as error:
        raise FileNotFoundError(
            f"backbone: {source} has no weights as safetensors ({error}). Pickled .bin weights are not read: "
            "load them once where you trust them and write them with save_pretrained(safe_serialization=True)."
        ) from error
    _check_loaded(source, info)
    tied = bool(config.tie_word_embeddings)
    with torch.device("meta"):
        described = {**text_config.to_dict(), "tie_word_embeddings": tied}
        backbone = TransformersBackbone(config=described, attention=attention)
    backbone.model = getattr(loaded.base_model, "language_model", loaded.base_model)
    backbone.lm_head = None if tied else loaded.get_output_embeddings()
    backbone.train()
    return backbone.to(device)


def _check_loaded(source: str, info: Any) -> None:
    missing = sorted(info["missing_keys"])
    wrong = sorted(str(entry[0]) for entry in info["mismatched_keys"])
    if missing or wrong:
        names = ", ".join((missing + wrong)[:5])
        raise ValueError(
            f"backbone: {source} lacks {len(missing)} weights and has {len(wrong)} of another shape ({names}, ...). "
            "The download may be incomplete; fetch it again."
        )


def _refuse_unknown_kinds(text_config: Any) -> None:
    layer_types = set(getattr(text_config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if layer_types:
        raise ValueError(
            f"backbone: {text_config.model_type} has layers of type {', '.join(sorted(layer_types))}; only models with "
            "full attention in every layer can be used."
        )
    rescaled = [name for name in _RESCALED_LOGITS if getattr(text_config, name, None) not in (None, 1.0)]
    if rescaled:
        raise ValueError(
            f"backbone: {text_config.model_type} rescales its logits ({rescaled[0]}), which is not supported."
        )


def _decoder_layers(model: Any) -> Any:
    """The blocks; models of the GPT-2 family call them ``h``."""
    for name in ("layers", "h"):
        if hasattr(model, name):
            return getattr(model, name)
    raise ValueError(f"backbone: {type(model).__name__} keeps its blocks neither in .layers nor in .h: not supported.")


def _mrope_section(text_config: Any) -> Sequence[int]:
    """Channels that each axis of M-RoPE turns; empty for ordinary rotary positions."""
    parameters = getattr(text_config, "rope_parameters", None) or {}
    return parameters.get("mrope_section") or ()


def _foreign_cache(past: KeyValueCache | None, extension: CacheExtension | None, num_layers: int) -> Any:
    from transformers.cache_utils import Cache as ForeignCache

    length = 0 if past is None else past.length
    return ForeignCache(layers=[_cache_layer_class()(extension, length) for _ in range(num_layers)])


@lru_cache
def _cache_layer_class() -> Any:
    """A layer of a ``transformers`` cache that hands keys and values to our extension instead of changing in place."""
    from transformers.cache_utils import DynamicLayer

    class ExtensionLayer(DynamicLayer):
        def __init__(self, extension: CacheExtension | None, length: int) -> None:
            super().__init__()
            self.extension = extension
            self.length = length

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            if self.extension is None:
                return key_states, value_states
            return self.extension.append(key_states, value_states)

        def get_seq_length(self, *args: Any) -> int:
            return self.length

    return ExtensionLayer
