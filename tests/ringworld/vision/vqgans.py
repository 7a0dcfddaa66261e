"""Small VQGANs for tests, with codes that latents are spread over."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ringworld.vision.config import VQConfig
from ringworld.vision.parameters import Params
from ringworld.vision.vqgan import CODES, abstract_params

SMALL = VQConfig(16, (8, 16), blocks=1, latent=8, code_dim=6, codebook=32, groups=4)


def random_params(config: VQConfig = SMALL, seed: int = 0) -> Params:
    """Weights whose codes lie as far apart as latents do, and whose norms and biases are of no special value."""
    random = np.random.default_rng(seed)

    def weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
        drawn = random.normal(size=shape)
        if len(shape) == 4:
            return drawn * np.prod(shape[:3]) ** -0.5
        return drawn if name == CODES else 0.3 * drawn + name.endswith("weight")

    shapes = abstract_params(config).items()
    return {name: jnp.asarray(weights(name, leaf.shape), jnp.float32) for name, leaf in shapes}


def pictures(count: int, side: int = 16, seed: int = 0) -> np.ndarray:
    """uint8 [count, side, side, 3]: plain colours with a rectangle of another."""
    random = np.random.default_rng(seed)
    made = np.empty((count, side, side, 3), np.uint8)
    for picture in made:
        picture[:] = random.integers(0, 256, 3)
        top, left = random.integers(0, side // 2, 2)
        picture[top : top + side // 2, left : left + side // 2] = random.integers(0, 256, 3)
    return made
