"""The output head: loss with gradients, and a step, from hidden states; by number of positions.

All contenders start from the same hidden states, weight and bias, and return the gradients of the
mean loss (or the next tokens). The floor is arithmetic: the bare matrix products on the rows that
noise touched (three for gradients, one for a step), in the fastest form known here, without any use
of their results.

On a CPU some contenders take minutes. They are left out unless ``config.slow``:

- the loss with reduction "none", a step by eager formulas and by torch.compile, and torch's
  linear_cross_entropy, another loss of the same size;
- where products of 16-bit numbers are far slower than those of float32 (as torch's are on x86-64
  without AVX-512), whatever forms the gradients of whole scores.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import sedd_fast as sf
from benchmarks.contenders import baselines, compiled, cross_entropy
from benchmarks.contenders.compiled import compile_static
from benchmarks.contenders.original import Original
from benchmarks.contenders.rivals import Rivals
from benchmarks.harness.cases import Call, Case, Contender, ours
from benchmarks.harness.config import DTYPES, BenchmarkConfig
from sedd_fast.ops import TouchedRows

#: Number of positions on a CPU, unless others are asked for.
POSITIONS = 1024
#: Beyond, the eager formulas need most memory of a small machine.
EAGER_UP_TO = 1024
BLOCK = 1008  # states of the blocked products of the floor
#: Products that take so many times those of float32 are slow.
FAR_SLOWER = 8


@dataclass(frozen=True)
class HeadProblem:
    """A head over the whole vocabulary, half of whose positions are masked."""

    graph: sf.Absorbing
    hidden: Tensor  # (B, L, H); hidden, weight and bias are leaves that require gradients
    weight: Tensor  # (dim, H)
    bias: Tensor  # (dim,)
    x_t: Tensor
    x_0: Tensor
    row_weight: Tensor  # (B, L)
    sigma: Tensor  # (B, 1)
    removed: Tensor  # (B, 1)

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        """The tensors whose gradients are computed."""
        return self.hidden, self.weight, self.bias

    def scores(self) -> Tensor:
        """Log scores (B, L, dim), as the original forms them."""
        raw = F.linear(self.hidden, self.weight, self.bias).float()
        scale = torch.log(torch.expm1(self.sigma)) + math.log(self.graph.vocab_size)
        return (raw - scale[..., None]).scatter(-1, self.x_t[..., None], 0)

    def rows(self) -> TouchedRows | None:
        """On a GPU a list of the masked positions, made without counting them on the host; the
        network counts them while its body runs.
        """
        if not self.hidden.is_cuda:
            return None
        positions = self.x_t.numel()
        return sf.touched_rows(self.x_t, self.graph, self.row_weight, max_rows=positions // 2)

    def touched(self) -> Tensor:
        """Hidden states (R, H) of the masked positions."""
        return self.hidden.detach()[self.x_t == self.graph.mask_index]


def make_head(
    config: BenchmarkConfig, positions: int, width: int, dtype: torch.dtype
) -> HeadProblem:
    """Random operands; exactly half of the positions masked."""
    device = torch.device(config.device)
    on = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    graph, noise = sf.Absorbing(config.vocab_size), sf.LogLinearNoise()
    shape = (2, positions // 2)
    sigma, rate = noise(torch.full((2, 1), 0.5, dtype=torch.float64, device=device))
    x_0 = torch.randint(graph.vocab_size, shape, **on)
    masked = torch.zeros(positions, dtype=torch.bool, device=device)
    masked[torch.randperm(positions, **on)[: positions // 2]] = True

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(size, **on) * scale).to(dtype).requires_grad_()

    return HeadProblem(
        graph,
        normal(*shape, width),
        normal(graph.dim, width, scale=1 / math.sqrt(width)),
        normal(graph.dim, scale=0.1),
        torch.where(masked.view(shape), graph.mask_index, x_0),
        x_0,
        (rate / 2).expand(shape).contiguous(),
        sigma.float(),
        (sigma - noise.sigma(torch.full_like(sigma, 0.49))).float(),
    )


def head_cases(config: BenchmarkConfig, original: Original | None) -> Iterator[Case]:
    """Loss with gradients at every number of positions, then a step."""
    rivals, width = Rivals(config, original), config.hidden_size
    counts = (POSITIONS,) if config.head_positions is None else config.head_positions
    if config.device == "cuda" and config.head_positions is None:
        counts, width = (config.positions,), 768
    for name in config.dtypes:
        for positions in counts:
            problem = make_head(config, positions, width, DTYPES[name])
            shape = f"{positions:,} x {width} x {config.vocab_size + 1:,}"
            chosen = choose(config, positions, DTYPES[name])
            for title, contenders, gradients in (
                ("head, loss + gradients", gradient, True),
                ("head, analytic step", step, False),
            ):
                found = contenders(rivals, problem, chosen)
                touched, weight = problem.touched(), problem.weight.detach()
                floors = products(touched, weight, gradients, not chosen.fast_products)
                yield Case("head", title, shape, name, found, floor_runs=floors, at=positions)


@dataclass(frozen=True)
class Chosen:
    """Which contenders take part.

    Attributes:
        eager: eager formulas and torch.compile.
        slow: what takes longest on a CPU.
        fast_products: whole scores have their products in the dtype of the operands.
    """

    eager: bool
    slow: bool
    fast_products: bool


def choose(config: BenchmarkConfig, positions: int, dtype: torch.dtype) -> Chosen:
    """Everything on a GPU; on a CPU what ends in minutes."""
    if config.device == "cuda":
        return Chosen(eager=True, slow=True, fast_products=True)
    fast = config.slow or times_slower(dtype) < FAR_SLOWER
    return Chosen(positions <= EAGER_UP_TO, config.slow, fast)


def left_out(config: BenchmarkConfig) -> list[str]:
    """A line for each dtype whose products are so slow that contenders are left out."""
    if config.device == "cuda" or config.slow:
        return []
    return [
        f"products of {name} take over {FAR_SLOWER} times as long as those of fp32 here: what "
        "forms the gradients of whole scores is left out of the head (--slow measures it), and the "
        "floor is products in fp32"
        for name in config.dtypes
        if times_slower(DTYPES[name]) >= FAR_SLOWER
    ]


@functools.cache
def times_slower(dtype: torch.dtype) -> float:
    """How many times longer a product takes on the CPU in that dtype than in float32.

    On one thread: a small product on several would show how busy the other cores are.
    """

    def least(of: torch.dtype) -> float:
        a, b, times = torch.ones(32, 1024, dtype=of), torch.ones(1024, 256, dtype=of), []
        for _ in range(10):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        return min(times)

    if dtype == torch.float32:
        return 1.0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return least(dtype) / least(torch.float32)
    finally:
        torch.set_num_threads(threads)


def gradient(rivals: Rivals, p: HeadProblem, chosen: Chosen) -> tuple[Contender, ...]:
    """The contenders that return the gradients of hidden states, weight and bias."""
    inputs = (p.sigma, p.x_t, p.x_0)

    def by(loss: Callable[[Tensor], Tensor]) -> Call:
        return lambda: torch.autograd.grad(loss(p.scores()), p.leaves)

    def plain(scores: Tensor) -> Tensor:
        total = compile_static(compiled.entropy)(scores, *inputs, p.row_weight, p.graph)
        return total / p.x_t.numel()

    def eager(scores: Tensor) -> Tensor:
        return (p.row_weight * baselines.score_entropy(scores, *inputs, p.graph)).mean()

    def dense(scores: Tensor) -> Tensor:
        return sf.score_entropy(scores, *inputs, p.graph, p.row_weight, "mean")

    def fused(reduction: str) -> Call:
        def run() -> object:
            loss = sf.linear_score_entropy(
                *p.leaves, *inputs, p.graph, row_weight=p.row_weight, reduction=reduction,
                rows=p.rows(),
            )  # fmt: skip
            return torch.autograd.grad(loss.mean(), p.leaves)

        return run

    whole = chosen.eager and chosen.fast_products
    found = rivals.contenders(by(eager), by(plain)) if whole else []
    if chosen.fast_products:
        found += ours(rivals.config, ", dense", by(dense))
    found += ours(rivals.config, ", fused", fused("mean"), op="linear_score_entropy")
    if chosen.slow:
        found += ours(rivals.config, ", fused, none", fused("none"), op="linear_score_entropy")
        found += yardsticks(p)
    return tuple(found)


def yardsticks(p: HeadProblem) -> tuple[Contender, ...]:
    """Linear cross-entropies of the touched rows: another loss of the same size."""
    target = p.x_0[p.x_t == p.graph.mask_index]
    return cross_entropy.contenders(p.touched().requires_grad_(), p.weight, p.bias, target)


def step(rivals: Rivals, p: HeadProblem, chosen: Chosen) -> tuple[Contender, ...]:
    """The contenders that return the next tokens."""

    def by(draw: Callable[[Tensor], object]) -> Call:
        return torch.no_grad()(lambda: draw(p.scores()))

    def eager(scores: Tensor) -> object:
        return baselines.reverse_step(scores, p.x_t, p.removed, p.graph, "analytic")

    def plain(scores: Tensor) -> object:
        return compile_static(compiled.race_step)(scores, p.x_t, p.removed, p.graph, "analytic")

    def dense(scores: Tensor) -> object:
        return sf.reverse_step(scores, p.x_t, p.sigma, p.removed, p.graph)

    def fused() -> object:
        return sf.linear_reverse_step(*p.leaves, p.x_t, p.sigma, p.removed, p.graph, rows=p.rows())

    found = rivals.contenders(by(eager), by(plain)) if chosen.eager and chosen.slow else []
    found += ours(rivals.config, ", dense", by(dense))
    return tuple(found + ours(rivals.config, ", fused", fused, op="linear_reverse_step"))


def products(
    h: Tensor, weight: Tensor, gradients: bool, in_float32: bool = False
) -> dict[str, Call]:
    """The bare products of the touched rows h (R, H) with weight (dim, H): whole, padded to a
    multiple of 64, and blocked; or in float32 alone, where those are slow.
    """

    def whole(w: Tensor) -> Call:
        def run() -> object:
            f = h @ w.T
            return (f, f @ w, f.T @ h) if gradients else f

        return run

    def blocked(dtype: torch.dtype) -> Call:
        def run() -> object:
            x = h.to(dtype)
            total, made = torch.zeros_like(x), torch.empty_like(weight, dtype=dtype)
            memory = x.new_empty(len(x) * BLOCK)
            for block, out in zip(weight.split(BLOCK), made.split(BLOCK), strict=True):
                w = block.to(dtype)
                f = memory[: len(x) * len(w)].view(len(x), len(w))
                torch.mm(x, w.T, out=f)
                if gradients:
                    total.addmm_(f, w)
                    torch.mm(f.T, x, out=out)
            return total, made

        return run

    if in_float32:
        return {"in float32": blocked(torch.float32)}
    padded = F.pad(weight, (0, 0, 0, -len(weight) % 64))
    return {"whole": whole(weight), "padded": whole(padded), "blocked": blocked(h.dtype)}
