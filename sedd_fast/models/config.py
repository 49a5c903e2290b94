"""What fixes a network and the noise process it was trained for."""

import reprlib
import sys
from dataclasses import dataclass, fields
from typing import Any

from sedd_fast.names import GRAPHS, NOISES, GraphKind, NoiseKind
from sedd_fast.ops._arguments import check_choice
from sedd_fast.process.noise import make_noise

#: More numbers than any machine holds: settings that ask for more are wrong.
_MOST_PARAMETERS = 2**40


@dataclass(frozen=True)
class SEDDConfig:
    """Everything that fixes the network and the process it was trained for.

    `vocab_size` counts real tokens; the absorbing graph adds its mask by itself. `length` is the
    training length: rotary positions let the network run at any other. `scale_by_sigma` subtracts
    ln(expm1(sigma)) + ln(vocab_size) from the output and is defined for the absorbing graph only.
    """

    vocab_size: int
    graph: GraphKind = "absorbing"
    noise: NoiseKind = "loglinear"
    noise_eps: float = 1e-3
    sigma_min: float = 1e-4
    sigma_max: float = 20.0
    hidden_size: int = 768
    cond_dim: int = 128
    length: int = 1024
    n_blocks: int = 12
    n_heads: int = 12
    mlp_ratio: int = 4
    dropout: float = 0.1
    scale_by_sigma: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), field.type)
        check_choice("graph", self.graph, GRAPHS)
        check_choice("noise", self.noise, NOISES)
        make_noise(
            self.noise, eps=self.noise_eps, sigma_min=self.sigma_min, sigma_max=self.sigma_max
        )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout!r}")
        width, cond = self.hidden_size, self.cond_dim
        block = width * (4 + 2 * self.mlp_ratio) * width + 6 * width * cond
        others = cond * cond + 2 * self.vocab_size * width
        if self.n_blocks * block + others > _MOST_PARAMETERS:
            raise ValueError(
                "the network would have more than 2^40 parameters; take a smaller hidden_size, "
                "n_blocks, mlp_ratio, cond_dim or vocab_size"
            )
        pairs = 2 * self.n_heads
        if self.hidden_size % pairs:
            raise ValueError(
                "hidden_size must be n_heads times an even head width (rotary positions turn pairs)"
                f", got hidden_size={self.hidden_size}, n_heads={self.n_heads}; take a multiple of "
                f"{pairs}, such as {pairs * max(1, round(self.hidden_size / pairs))}"
            )
        if self.scale_by_sigma and self.graph != "absorbing":
            raise ValueError(
                "scale_by_sigma=True is defined for graph='absorbing' only (the score of a masked "
                f"token goes as 1/expm1(sigma)); for graph={self.graph!r} set scale_by_sigma=False"
            )


def _check_type(name: str, value: Any, kind: Any) -> None:
    """ValueError unless a setting has the type of its field; numbers are finite, counts >= 1."""
    if kind is int and (type(value) is not int or not 1 <= value < 2**63):
        raise ValueError(f"{name} must be a positive int, got {reprlib.repr(value)}")
    if kind is float and (
        type(value) not in (int, float) or not abs(value) <= sys.float_info.max  # infinite or NaN
    ):
        raise ValueError(f"{name} must be a finite number, got {reprlib.repr(value)}")
    if kind is bool and type(value) is not bool:
        raise ValueError(f"{name} must be a bool, got {reprlib.repr(value)}")
