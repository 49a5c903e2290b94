"""What fixes a network and the noise process it was trained for."""

from dataclasses import dataclass, fields

from sedd_fast.ops._arguments import check_choice


@dataclass(frozen=True)
class SEDDConfig:
    """Everything that fixes the network and the process it was trained for.

    `vocab_size` counts real tokens; the absorbing graph adds its mask by itself. `length` is the
    training length: rotary positions let the network run at any other. `scale_by_sigma` subtracts
    ln(expm1(sigma)) + ln(vocab_size) from the output and is defined for the absorbing graph only.
    """

    vocab_size: int
    graph: str = "absorbing"  # or "uniform"
    noise: str = "loglinear"  # or "geometric"
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
            value = getattr(self, field.name)
            if field.type is int and (type(value) is not int or value < 1):
                raise ValueError(f"{field.name} must be a positive int, got {value!r}")
        check_choice("graph", self.graph, ("absorbing", "uniform"))
        check_choice("noise", self.noise, ("loglinear", "geometric"))
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout!r}")
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
