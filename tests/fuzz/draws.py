"""Random inputs of the operations, each made from one integer: ordinary numbers and edges."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import sedd_fast as sf
from helpers.op_cases import real_tokens

#: Vectors have 4 to 16 lanes, chunks 512 states, blocks of a sum 2048, strips 64 vectors.
VOCABULARIES = (
    *(2, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 127, 129, 255, 257),
    *(511, 512, 513, 1023, 1025, 2047, 2049),
)
#: Few, because they take long; enough rows of them are shared among threads.
LARGE = (4097, 9001, 16385)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: Noise levels: ordinary ones, those of a schedule's ends, and the limits of float64.
LEVELS = (
    *(0.1, 0.7, 1.0, 3.0, 1e-3, 1e-5, 6.9, 20.0),
    *(5e-324, 1e-310, 1e-308, 1e-300, 1e-200, 1e-40, 1e-16, 30.0, 34.0, 36.0, 37.0, 40.0),
    *(80.0, 300.0, 700.0, 709.0, 710.0, 746.0, 1e3, 1e10, 1e100, 1.7e308),
)
WEIGHTS = (0.0, 1.0, -1.0, 1e-30, 1e30, 1e-300, -0.0)
BAD = (math.nan, math.inf, -math.inf)
SCORES = (
    *(math.inf, -math.inf, math.nan, 1e30, -1e30, 0.0, -0.0, 88.0, 89.0, -88.0, -104.0, 1e-30),
    *(300.0, -300.0, 700.0, 720.0, -746.0, 1e4, -1e4),
)


class Draws(random.Random):
    """Choices that one integer determines."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.torch = torch.Generator().manual_seed(seed)

    def happens(self, probability: float) -> bool:
        return self.random() < probability

    def graph(self, largest: int | None = None) -> sf.Graph:
        size = self.choice(LARGE if largest is None and self.happens(0.03) else VOCABULARIES)
        size = min(size, largest or size)
        if self.happens(0.5):
            return sf.Uniform(size)
        return sf.Absorbing(size, self.choice((None, 0, self.randint(0, size))))

    def shape(self) -> tuple[int, int]:
        if self.happens(0.06):
            return self.choice(((0, 3), (2, 0), (0, 0)))
        return self.randint(1, 3), self.randint(1, 5)

    def normal(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.torch, dtype=torch.float64)

    def levels(self, batch: int, zero: bool = False) -> Tensor:
        """(batch,) noise levels, float64 or float32; ``zero``: some are 0."""
        one = [self.choice(LEVELS[:8] if self.happens(0.6) else LEVELS) for _ in range(batch)]
        if zero:
            one = [0.0 if self.happens(0.1) else level for level in one]
        level = torch.tensor(one, dtype=torch.float64)
        if not self.happens(0.3):
            return level
        info = torch.finfo(torch.float32)
        rounded = level.float().clamp(max=info.max)
        return torch.where(level > 0, rounded.clamp(min=1e-45), rounded)

    def tokens(self, shape: tuple[int, int], graph: sf.Graph) -> tuple[Tensor, Tensor]:
        """x_t and x_0: about half of the tokens are noised."""
        x_0 = real_tokens(torch.randint(graph.vocab_size, shape, generator=self.torch), graph)
        noised = torch.rand(shape, generator=self.torch) < self.choice((0.5, 0.5, 1.0))
        x_t = torch.where(noised, graph.sample_limit(shape, generator=self.torch), x_0)
        return self.laid_out(x_t), self.laid_out(x_0)

    def uniforms(self, shape: tuple[int, int]) -> Tensor:
        """(B, L, 2) float64, some at the ends of [0, 1)."""
        u = torch.rand((*shape, 2), generator=self.torch, dtype=torch.float64)
        for end in (0.0, 1 - 2**-53):
            if self.happens(0.25):
                u[torch.rand(u.shape, generator=self.torch) < 0.4] = end
        return self.laid_out(u)

    def weight(
        self, shape: tuple[int, int], edges: Sequence[float] = WEIGHTS, bad: Sequence[float] = BAD
    ) -> Tensor:
        """(B, L), float64 or float32, some of them edges or bad."""
        weight = self.normal(*shape).exp()
        if self.happens(0.4):
            self.scatter(weight, edges, 2)
        if self.happens(0.1):
            self.scatter(weight, bad, 1)
        weight = weight.float() if self.happens(0.4) else weight
        return self.laid_out(weight)

    def scores(self, shape: tuple[int, int], x_t: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
        """(B, L, dim): ordinary rows, rows at any level, equal scores, special values."""
        spread = self.choice((2.0, 2.0, 0.0, 1e-6, 1e-12, 10.0))
        level = self.choice((0.0, 0.0, 0.0, -120.0, 80.0, 300.0, -5.0))
        scores = spread * self.normal(*shape, dim) + level
        if self.happens(0.7):
            scores = scores.scatter(-1, x_t[..., None], 0.0)
        if self.happens(0.35):
            self.scatter(scores, SCORES, self.randint(1, 3))
        if scores.numel() and self.happens(0.1):  # a whole row
            row = self.randrange(shape[0]), self.randrange(shape[1])
            scores[row] = self.choice((*BAD, 0.0, -1e30, 1e30))
        if self.happens(0.1):
            scores = scores.masked_fill((x_t < dim - 1)[..., None], math.nan)
        return self.laid_out(scores.to(dtype))

    def scatter(self, values: Tensor, edges: Sequence[float], count: int) -> None:
        for _ in range(count if values.numel() else 0):
            values.view(-1)[self.randrange(values.numel())] = self.choice(edges)

    def laid_out(self, value: Tensor) -> Tensor:
        """The same shape with other strides, padding or offset; repeated along a dimension."""
        kind = self.choice(("contiguous", "contiguous", "transposed", "padded", "step", "expanded"))
        if kind == "transposed" and value.dim() > 1:
            a, b = self.sample(range(value.dim()), 2)
            return value.transpose(a, b).contiguous().transpose(a, b)
        if kind in ("padded", "step"):
            step = self.choice((2, 3)) if kind == "step" else 1
            before, after = self.randint(0, 3), self.randint(0, 3)
            size = before + value.shape[-1] * step + after
            whole = torch.full((*value.shape[:-1], size), 77).to(value.dtype)
            inside = whole[..., before : before + value.shape[-1] * step : step]
            return inside.copy_(value)
        if kind == "expanded" and value.numel():
            at = self.randrange(value.dim())
            return value.narrow(at, 0, 1).expand(value.shape)
        return value.contiguous()


@dataclass(frozen=True)
class TokenFilter:
    """Temperature and top-p."""

    temperature: float = 1.0
    top_p: float = 1.0

    @classmethod
    def drawn(cls, draws: Draws) -> "TokenFilter":
        if draws.happens(0.6):
            return cls()
        temperature = draws.choice((1.0, 0.5, 2.0, 1e-3, 1e3, 1e-300, 1e300))
        return cls(temperature, draws.choice((1.0, 0.903, 0.517, 1e-3, 1e-300, 0.999)))
