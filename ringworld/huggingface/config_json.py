"""config.json and ours, both ways: every field that would change what the model computes is understood, or refused by
its name. What is stated nowhere has transformers' own default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ringworld.data.files import join, read_json
from ringworld.errors import UserError
from ringworld.huggingface.families import CONFIG, FAMILIES, Family, family_of
from ringworld.huggingface.vision import vision_vocabulary
from ringworld.model.config import ModelConfig, RopeConfig
from ringworld.model.rope import ntk_base

# Fields of which one value is computed here, which is also what a missing one means.
_FIXED: Mapping[str, Any] = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}


@dataclass(frozen=True)
class Stated:
    """What a folder says of its model. context: tokens that it is meant for. window: of its sliding attention, None
    where it has none. dtype: of its products. eos_ids: what ends a text, as config.json has it."""

    model: ModelConfig
    context: int
    window: int | None
    dtype: str
    eos_ids: tuple[int, ...]

    def check_context(self, folder: str, sequence: int | None = None) -> None:
        """UserError where rows of `sequence` tokens, by default the folder's own context, are longer than the window:
        all attention here is full."""
        asked = self.context if sequence is None else sequence
        if self.window is not None and asked > self.window:
            raise UserError(
                f"{folder}/{CONFIG}: sliding_window={self.window}, and {asked} tokens are asked for; a window is not "
                f"computed here, so use at most {self.window} tokens, or set sliding_window to null in a copy if the "
                f"model is to attend to everything from now on"
            )


def read_config(folder: str) -> ModelConfig:
    """The ModelConfig that a folder (a path or a URL) states; see `read_stated`."""
    return read_stated(folder).model


def read_stated(folder: str) -> Stated:
    """What config.json says. UserError, naming the field, for an unknown family and for what is not computed here."""
    where = join(folder, CONFIG)
    stated = read_json(where)
    if not isinstance(stated, dict):
        raise UserError(f"{where}: expected an object of fields")
    family = FAMILIES.get(stated.get("model_type", ""))
    if family is None:
        raise UserError(f"{where}: model_type={stated.get('model_type')!r}; known: {', '.join(FAMILIES)}")
    for name, allowed in _FIXED.items():
        if stated.get(name, allowed) != allowed:
            raise UserError(f"{where}: {name}={stated[name]!r} is not computed here; only {allowed!r} is")
    if stated.get("quantization_config"):
        raise UserError(f"{where}: quantization_config; quantized weights are not read, give those before quantization")
    size = _Sizes(where, stated)
    heads, embed_dim = size("num_attention_heads"), size("hidden_size")
    fallback = 128 if family.head_norms else embed_dim // heads  # Qwen3's heads have 128 dimensions unless it says
    context = size("max_position_embeddings", 2048)
    model = ModelConfig(
        vocabulary=size("vocab_size"),
        num_layers=size("num_hidden_layers"),
        embed_dim=embed_dim,
        num_heads=heads,
        num_kv_heads=size("num_key_value_heads", heads),
        head_dim=size("head_dim", fallback),
        mlp_dim=size("intermediate_size"),
        tied_embeddings=bool(stated.get("tie_word_embeddings", False)),
        vision_vocabulary=vision_vocabulary(folder),
        norm_epsilon=float(stated.get("rms_norm_eps", 1e-6)),
        rope=_rope(where, stated, context),
        qkv_biases=family.qkv_biases,
        head_norms=family.head_norms,
    )
    eos = stated.get("eos_token_id")
    return Stated(
        model=model,
        context=context,
        window=_window(where, stated, family),
        dtype="bfloat16" if stated.get("dtype", stated.get("torch_dtype")) in ("bfloat16", "float16") else "float32",
        eos_ids=tuple(int(token) for token in (eos if isinstance(eos, list) else [] if eos is None else [eos])),
    )


class _Sizes:
    """Whole numbers of a config.json. UserError for what is none."""

    def __init__(self, where: str, stated: Mapping[str, Any]) -> None:
        self._where, self._stated = where, stated

    def __call__(self, name: str, fallback: int | None = None) -> int:
        value = self._stated.get(name)
        value = fallback if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{self._where}: {name}={value!r}; expected a whole number, 1 or more")
        return value


def _window(where: str, stated: Mapping[str, Any], family: Family) -> int | None:
    if family.window is None and family.window_switch is None:
        return None
    if family.window_switch is not None:
        on = bool(stated.get(family.window_switch, False))
        sliding = "sliding_attention" in (stated.get("layer_types") or ())
        found = stated.get("sliding_window", 4096) if on or sliding else None
    else:
        found = stated.get("sliding_window", family.window)
    if found is not None and (not isinstance(found, int) or found < 1):
        raise UserError(f"{where}: sliding_window={found!r}; expected null, or a whole number of tokens")
    return found


def _rope(where: str, stated: Mapping[str, Any], context: int) -> RopeConfig:
    """UserError for a kind of scaling, or a field of one, that is not computed here."""
    told = dict(stated.get("rope_scaling") or {}) | dict(stated.get("rope_parameters") or {})
    kind = told.get("rope_type") or told.get("type") or "default"
    theta = float(told.get("rope_theta") or stated.get("rope_theta") or 10_000.0)
    part = told.get("partial_rotary_factor") or stated.get("partial_rotary_factor") or 1.0
    if part != 1.0:
        raise UserError(f"{where}: partial_rotary_factor={part!r} is not computed here: all of a head is turned")
    original = int(told.get("original_max_position_embeddings") or context)
    try:
        if kind == "default":
            return RopeConfig(theta)
        if kind == "dynamic":
            raise UserError(
                "rope_type=dynamic changes its base while it reads. Its base at n tokens is that of rope_type=default "
                "with rope_theta * (factor * n / max_position_embeddings - factor + 1) ^ (d / (d - 2)), d being "
                "head_dim; write that into a copy for the length that you train"
            )
        if kind not in ("linear", "yarn", "llama3"):
            raise UserError(f"rope_type={kind!r} is not computed here; known: default, linear, yarn, llama3")
        factor = float(told["factor"])
        if kind == "linear":
            return RopeConfig(theta, "linear", factor)
        if kind == "llama3":
            return RopeConfig(
                theta, "llama3", factor, original,
                low_frequency_factor=float(told["low_freq_factor"]),
                high_frequency_factor=float(told["high_freq_factor"]),
            )  # fmt: skip
        if not told.get("truncate", True):
            raise UserError("truncate=false of yarn is not computed here")
        return RopeConfig(
            theta, "yarn", factor, original, float(told.get("beta_fast") or 32), float(told.get("beta_slow") or 1),
            attention_factor=_attention_factor(told, factor),
        )  # fmt: skip
    except KeyError as missing:
        raise UserError(f"{where}: rope_type={kind!r} lacks {missing}") from None
    except (TypeError, ValueError) as wrong:
        raise UserError(f"{where}: {wrong}") from None
    except UserError as wrong:
        raise UserError(f"{where}: {wrong}") from None


def _attention_factor(told: Mapping[str, Any], factor: float) -> float:
    """YaRN's, where it is not 0.1 ln(factor) + 1: stated, or by DeepSeek's two coefficients of the logarithm."""
    if told.get("attention_factor") is not None:
        return float(told["attention_factor"])
    over, under = told.get("mscale"), told.get("mscale_all_dim")
    if over and under:
        return (0.1 * over * math.log(factor) + 1) / (0.1 * under * math.log(factor) + 1)
    return 0.0


def config_json(config: ModelConfig, context: int, dtype: str, begin: int | None, ends: list[int]) -> dict[str, Any]:
    """What config.json says of a model for `context` tokens; vision is no part of it. UserError where no family fits.

    Positions are in the fields that transformers 4 and 5 both read.
    """
    family = family_of(config)
    written = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": config.vocabulary,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied_embeddings,
        "max_position_embeddings": context,
        "bos_token_id": begin,
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
        "torch_dtype": dtype,
        "use_cache": True,
        **_rope_fields(config),
    }
    if family.window is not None:
        written["sliding_window"] = None
    if family.window_switch is not None:
        written[family.window_switch] = False
    if family.model_type in ("llama", "qwen3"):
        written["attention_bias"] = False
    return written


def _rope_fields(config: ModelConfig) -> dict[str, Any]:
    rope = config.rope
    if rope.scaling == "ntk":  # which is nothing but a larger base
        return {"rope_theta": ntk_base(rope, config.head_dim), "rope_scaling": None}
    scaling: dict[str, Any] = {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling in ("yarn", "llama3"):
        scaling["original_max_position_embeddings"] = rope.original_length
    if rope.scaling == "yarn":
        scaling |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        scaling |= {"attention_factor": rope.attention_factor} if rope.attention_factor else {}
    if rope.scaling == "llama3":
        scaling |= {"low_freq_factor": rope.low_frequency_factor, "high_freq_factor": rope.high_frequency_factor}
    return {"rope_theta": rope.theta, "rope_scaling": None if rope.scaling == "none" else scaling}
