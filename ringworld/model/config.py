"""The shape of a model, as data: what a checkpoint must agree with, and the RoPE that a stage may change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ringworld.errors import UserError


def _added(default: Any) -> Any:
    """A field that recipes have not always had: while it has its default it is no part of a recipe's identity, so that
    stages finished before stay finished (`infra.stage.canonical`)."""
    return field(default=default, metadata={"identity": "unless default"})


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864) and how it is stretched past its first context.

    theta            base of the frequencies; LWM raises it with the context, 10K at 4K tokens to 50M at 1M
    scaling          none | linear (Chen et al. 2023, 2306.15595) | ntk (a larger base, the same at every length) |
                     yarn (Peng et al. 2023, 2309.00071) | llama3 (Grattafiori et al. 2024, 2407.21783)
    factor           context / original_length, for every scaling but none
    original_length  tokens of context that the weights were trained at (yarn, llama3)
    beta_fast, beta_slow    turns within original_length from which a pair stays, and up to which it stretches (yarn)
    attention_factor        on cosines and sines (yarn); 0: 0.1 ln(factor) + 1, as its authors advise
    low_frequency_factor, high_frequency_factor    as beta_slow and beta_fast, of llama3

    The formulas are in `ringworld.model.rope`.
    """

    theta: float = 10_000.0
    scaling: Literal["none", "linear", "ntk", "yarn", "llama3"] = "none"
    factor: float = 1.0
    original_length: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = _added(0.0)
    low_frequency_factor: float = _added(1.0)
    high_frequency_factor: float = _added(4.0)

    def __post_init__(self) -> None:
        if self.theta <= 1:
            raise UserError(f"rope.theta={self.theta}: the base must be above 1, as in 10000.0")
        if self.scaling == "none" and self.factor != 1.0:
            raise UserError(
                f"rope.factor={self.factor} with scaling none does nothing; give scaling linear, ntk, yarn or llama3"
            )
        if self.factor < 1.0:
            raise UserError(f"rope.factor={self.factor}: a context is stretched by 1 or more")
        if self.scaling in ("yarn", "llama3") and self.original_length < 1:
            raise UserError(
                f"rope.scaling={self.scaling} needs rope.original_length, the context that the weights were trained at"
            )
        if self.attention_factor < 0 or (self.attention_factor and self.scaling != "yarn"):
            raise UserError(
                f"rope.attention_factor={self.attention_factor}: above 0, of scaling yarn alone; 0: its own"
            )
        if not 0 < self.low_frequency_factor < self.high_frequency_factor:
            raise UserError(
                f"rope.low_frequency_factor={self.low_frequency_factor} must be above 0 and below "
                f"rope.high_frequency_factor={self.high_frequency_factor}"
            )


@dataclass(frozen=True)
class ModelConfig:
    """A Llama: sizes in units (layers, dimensions, heads), never in bytes.

    vocabulary          text tokens; their ids are 0 .. vocabulary - 1
    vision_vocabulary   codes of pictures, with rows and columns of their own, as in LWM (arXiv 2402.08268); their ids
                        follow those of text; 0: a model of text alone
    qkv_biases          queries, keys and values have biases (Qwen2)
    head_norms          each head's queries and keys are normed before they are turned (Qwen3; Dehghani et al. 2023,
                        arXiv 2302.05442)
    init                of fresh weights: normal | mimetic (a small model learns sooner to look back); see
                        `ringworld.model.init`
    """

    vocabulary: int
    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    tied_embeddings: bool = False
    vision_vocabulary: int = 0
    norm_epsilon: float = 1e-5
    rope: RopeConfig = field(default_factory=RopeConfig)
    qkv_biases: bool = _added(False)
    head_norms: bool = _added(False)
    init: Literal["normal", "mimetic"] = _added("normal")

    def __post_init__(self) -> None:
        for name in ("vocabulary", "num_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name}={getattr(self, name)}: must be 1 or more")
        if self.vision_vocabulary < 0:
            raise UserError(f"model.vision_vocabulary={self.vision_vocabulary}: 0, or as many as there are vision ids")
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model.num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}; use one of "
                f"{[n for n in range(1, self.num_heads + 1) if self.num_heads % n == 0]}"
            )
        if self.head_dim % 2:
            raise UserError(f"model.head_dim={self.head_dim}: rotary positions turn pairs, so it must be even")
