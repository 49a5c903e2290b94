"""The heads of models of p(x_0 | x_t): cross entropy with gradients, and a denoising step.

Part of the suite "head". All contenders start from the same hidden states, weight and bias. The
last state, the mask, has probability 0: ours get it as ``excluded``, and the others a bias of -inf.

- Cross entropy: half of the rows carry a loss. Every contender reads these alone and returns the
  gradients of hidden states, weight and bias. The floor is the three bare products on them.
- Denoising: a token for every row with what samplers ask besides, or the token alone. The floor is
  the one bare product.

On a CPU, what takes longest is left out unless ``config.slow``, as in :mod:`.head`: torch's
linear_cross_entropy, reduction "none", and of a denoising step float64 and torch.compile; and where
products of 16-bit numbers are slow, whatever forms the gradients of logits.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import sedd_fast as sf
from benchmarks.contenders import cross_entropy, softmax_head
from benchmarks.contenders.compiled import compile_static
from benchmarks.harness.cases import Call, Case, Contender, ours
from benchmarks.harness.config import DTYPES, BenchmarkConfig
from benchmarks.suites.head import Chosen, choose, products
from sedd_fast.names import WANTED, Wanted
from sedd_fast.ops import TouchedRows

CROSS_ENTROPY = "cross entropy, loss + gradients"
#: Titles of the cases of a denoising step -> what they want.
DENOISE: dict[str, tuple[Wanted, ...]] = {
    "denoise, all but the embedding": tuple(name for name in WANTED if name != "embedding"),
    "denoise, token alone": ("token",),
}
TITLES = (CROSS_ENTROPY, *DENOISE)
#: Rows of the cross entropy on a CPU, unless others are asked for; half of them carry a loss.
ROWS = (1024, 4096)
#: Rows, states and width of a denoising step, whatever is asked for; and to check that it runs.
SHAPES = ((256, 262_144, 512), (512, 50_257, 768))
QUICK_SHAPES = ((16, 1024, 32),)


@dataclass(frozen=True)
class SoftmaxHead:
    """Hidden states and a head whose last state has probability 0.

    hidden (N, H), weight (dim, H) and bias (dim,) are leaves that require gradients.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        """The tensors whose gradients are computed."""
        return self.hidden, self.weight, self.bias

    @property
    def excluded(self) -> int:
        """The state of probability 0."""
        return len(self.weight) - 1

    @property
    def logits_bytes(self) -> int:
        """Bytes of the logits of all rows, which need not be formed."""
        return len(self.hidden) * len(self.weight) * self.hidden.element_size()


@dataclass(frozen=True)
class Rows:
    """The targets of all rows, (N,), and the rows that carry a loss.

    Attributes:
        row_weight: (N,) float32; of the sum, so that it is a mean.
        index: (R,) int64, the rows of a weight other than 0.
    """

    target: Tensor
    row_weight: Tensor
    index: Tensor

    @property
    def listed(self) -> TouchedRows | None:
        """On a GPU the rows, so that ours does not wait for their number."""
        return TouchedRows.at(self.index) if self.index.is_cuda else None


def make_head(
    device: torch.device, rows: int, states: int, width: int, dtype: torch.dtype
) -> SoftmaxHead:
    """Random operands."""
    on = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    weight = torch.randn(states, width, **on).mul_(1 / math.sqrt(width))  # type: ignore[arg-type]
    bias = torch.randn(states, **on).mul_(0.1)  # type: ignore[arg-type]
    bias[-1] = -torch.inf
    hidden = torch.randn(rows, width, **on)  # type: ignore[arg-type]
    return SoftmaxHead(*(x.to(dtype).requires_grad_() for x in (hidden, weight, bias)))


def make_rows(p: SoftmaxHead) -> Rows:
    """Random targets, and exactly half of the rows with weights as 1/t of uniform times."""
    count, device = len(p.hidden), p.hidden.device
    on = {"generator": torch.Generator(device).manual_seed(1), "device": device}
    target = torch.randint(p.excluded, (count,), **on)  # type: ignore[arg-type]
    index = torch.randperm(count, **on)[: count // 2].sort().values  # type: ignore[arg-type]
    t = 0.1 + 0.9 * torch.rand(len(index), **on)  # type: ignore[arg-type]
    row_weight = torch.zeros(count, device=device).index_copy_(0, index, 1 / (t * count))
    return Rows(target, row_weight, index)


def softmax_head_cases(config: BenchmarkConfig) -> Iterator[Case]:
    """The cross entropy at every number of rows, then the denoising steps."""
    yield from cross_entropy_cases(config)
    yield from denoise_cases(config)


def cross_entropy_cases(config: BenchmarkConfig) -> Iterator[Case]:
    """The loss with gradients."""
    device, width, counts = torch.device(config.device), config.hidden_size, ROWS
    if config.head_positions is not None:
        counts = config.head_positions
    elif config.device == "cuda":
        counts, width = (config.positions,), 768
    for name in config.dtypes:
        for count in counts:
            p = make_head(device, count, config.vocab_size + 1, width, DTYPES[name])
            rows, chosen = make_rows(p), choose(config, count, DTYPES[name])
            touched, weight = p.hidden.detach()[rows.index], p.weight.detach()
            yield Case(
                "head",
                CROSS_ENTROPY,
                f"{count:,} x {width} x {len(weight):,}",
                name,
                tuple(losses(config, p, rows, chosen)),
                floor_runs=products(touched, weight, True, not chosen.fast_products),
                at=count,
                returned_bytes=sum(x.numel() * x.element_size() for x in p.leaves),
                logits_bytes=p.logits_bytes,
            )


def losses(config: BenchmarkConfig, p: SoftmaxHead, rows: Rows, chosen: Chosen) -> list[Contender]:
    """The contenders that return the gradients of hidden states, weight and bias."""
    inputs = (rows.target, rows.row_weight, rows.index)

    def eager() -> object:
        return torch.autograd.grad(softmax_head.cross_entropy(*p.leaves, *inputs), p.leaves)

    def plain() -> object:
        loss = compile_static(softmax_head.cross_entropy)(*p.leaves, *inputs)
        return torch.autograd.grad(loss, p.leaves)

    def chunks() -> object:
        return softmax_head.row_chunks(*p.leaves, *inputs)[1]

    def by(reduction: str) -> Call:
        def run() -> object:
            loss = sf.linear_cross_entropy(
                *p.leaves, rows.target, rows.row_weight, excluded=p.excluded, reduction=reduction,
                rows=rows.listed,
            )  # fmt: skip
            return torch.autograd.grad(loss.sum(), p.leaves)

        return run

    found = []
    if chosen.fast_products:
        found.append(Contender("eager, F.cross_entropy", "eager", eager))
        if config.compile:
            found.append(Contender("torch.compile", "compile", plain))
        found.append(Contender("row chunks in plain torch", "yardstick", chunks))
    found += ours(config, "", by("sum"), op="linear_cross_entropy")
    if chosen.slow:
        found += ours(config, ", none", by("none"), op="linear_cross_entropy")
        touched = p.hidden.detach()[rows.index].requires_grad_()
        target = rows.target[rows.index]
        found += cross_entropy.contenders(touched, p.weight, p.bias, target)
    return found


def denoise_cases(config: BenchmarkConfig) -> Iterator[Case]:
    """A denoising step: everything but the embedding, and the token alone."""
    device = torch.device(config.device)
    for name in config.dtypes:
        for shape in QUICK_SHAPES if config.quick else SHAPES:
            p = make_head(device, *shape, DTYPES[name])
            chosen = choose(config, len(p.hidden), DTYPES[name])
            hidden, weight = p.hidden.detach(), p.weight.detach()
            for title, want in DENOISE.items():
                yield Case(
                    "head",
                    title,
                    f"{shape[0]:,} x {shape[2]} x {shape[1]:,}",
                    name,
                    tuple(steps(config, p, want, chosen)),
                    floor_runs=products(hidden, weight, False, not chosen.fast_products),
                    at=shape[0],
                    returned_bytes=0,
                    logits_bytes=p.logits_bytes,
                )


def steps(
    config: BenchmarkConfig, p: SoftmaxHead, want: tuple[Wanted, ...], chosen: Chosen
) -> list[Contender]:
    """The contenders that return what is wanted of every row."""
    operands = [x.detach() for x in p.leaves]
    alone = want == ("token",)
    eager = softmax_head.token if alone else softmax_head.everything
    gumbel = softmax_head.gumbel_token if alone else softmax_head.gumbel_everything

    def run() -> object:
        return sf.linear_denoise(*operands, excluded=p.excluded, want=want)

    found = [Contender("eager, float32 softmax", "eager", lambda: eager(*operands))]
    if chosen.slow:
        found.append(Contender("eager, float64 (LLaDA)", "eager", lambda: gumbel(*operands)))
        if config.compile:
            plain = compile_static(eager)
            found.append(Contender("torch.compile", "compile", lambda: plain(*operands)))
    return found + ours(config, "", run, op="linear_denoise")
