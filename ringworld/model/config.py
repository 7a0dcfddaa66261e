"""The shape of a model, as data: what a checkpoint must agree with, and the RoPE that a stage may change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ringworld.errors import UserError


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864) and how it is stretched past its first context.

    theta            base of the frequencies; LWM raises it with the context, 10K at 4K tokens to 50M at 1M
    scaling          none | linear (Chen et al. 2023, 2306.15595) | ntk (base changed once, by factor) |
                     yarn (Peng et al. 2023, 2309.00071)
    factor           context / original_length, for every scaling but none
    original_length  tokens of context that the weights were trained at (yarn)
    """

    theta: float = 10_000.0
    scaling: Literal["none", "linear", "ntk", "yarn"] = "none"
    factor: float = 1.0
    original_length: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def __post_init__(self) -> None:
        if self.theta <= 1:
            raise UserError(f"rope.theta={self.theta}: the base must be above 1, as in 10000.0")
        if self.scaling == "none" and self.factor != 1.0:
            raise UserError(
                f"rope.factor={self.factor} with scaling none does nothing; give scaling linear, ntk or yarn"
            )
        if self.factor < 1.0:
            raise UserError(f"rope.factor={self.factor}: a context is stretched by 1 or more")
        if self.scaling == "yarn" and self.original_length < 1:
            raise UserError(
                "rope.scaling=yarn needs rope.original_length, the context that the weights were trained at"
            )


@dataclass(frozen=True)
class ModelConfig:
    """A Llama: sizes in units (layers, dimensions, heads), never in bytes.

    vocabulary          text tokens; their ids are 0 .. vocabulary - 1
    vision_vocabulary   codes of pictures, with rows and columns of their own, as in LWM (arXiv 2402.08268); their ids
                        follow those of text; 0: a model of text alone
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
