"""The shape of a VQGAN, as data: what a folder of weights must agree with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ringworld.errors import UserError


@dataclass(frozen=True)
class VQConfig:
    """A VQGAN (Esser et al. 2021, arXiv 2012.09841) of residual blocks without attention.

    resolution  pixels of a side that it is trained at; other sides that are multiples of `factor` work too
    channels    of each level, the finest first; every level but the last halves the sides
    blocks      residual blocks of a level of the encoder; a level of the decoder has one more
    latent      channels between the encoder and the codebook
    code_dim    dimensions of a code
    codebook    number of codes
    groups      of channels that a norm's statistics are taken over
    """

    resolution: int
    channels: tuple[int, ...]
    blocks: int
    latent: int
    code_dim: int
    codebook: int
    groups: int

    def __post_init__(self) -> None:
        for name in ("resolution", "blocks", "latent", "code_dim", "groups"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be 1 or more")
        if self.codebook < 2:
            raise UserError(f"codebook={self.codebook}: a codebook has 2 codes or more")
        if not self.channels:
            raise UserError("channels=[]: a VQGAN has one level or more, as in channels=[128, 256]")
        for channels in self.channels:
            if channels < 1 or channels % self.groups:
                raise UserError(f"channels={list(self.channels)}: {channels} is not a multiple of groups={self.groups}")
        if self.resolution % self.factor:
            raise UserError(
                f"resolution={self.resolution} is not a multiple of {self.factor}, which {len(self.channels)} levels "
                f"divide the sides by"
            )

    @property
    def factor(self) -> int:
        """Pixels of a side that one code stands for."""
        return 2 ** (len(self.channels) - 1)

    @property
    def grid(self) -> int:
        """Codes of a side at `resolution`."""
        return self.resolution // self.factor


PRESETS: Mapping[str, VQConfig] = {
    # aMUSEd's (Patil et al. 2024, arXiv 2401.01808), which LWM reads and writes pictures with.
    "amused": VQConfig(256, (128, 256, 256, 512, 768), blocks=2, latent=64, code_dim=64, codebook=8192, groups=32),
    # Learns on two cores in minutes: every level costs about the same. One group: norms of a channel or two would take
    # brightness and colour out of a picture.
    "tiny": VQConfig(64, (8, 16, 32, 64, 128), blocks=1, latent=32, code_dim=32, codebook=1024, groups=1),
}


def preset(name: str) -> VQConfig:
    """The sizes of this name. UserError where there are none."""
    if name not in PRESETS:
        raise UserError(f"vqgan preset {name!r}: there are {', '.join(PRESETS)}")
    return PRESETS[name]
