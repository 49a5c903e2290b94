"""SEDD-small, one sequence: gradients of the loss, and a sampling run, against fp32 eager formulas.

This is what a researcher without a GPU waits for. The eager contender computes in fp32, as the
original code does on a CPU, whatever the dtype of our contenders under autocast. The floor is the
bare matrix products of the network's linear layers in that dtype; of the head, only the products of
the rows that noise touched.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sedd_fast as sf
from benchmarks.contenders import baselines
from benchmarks.harness.cases import Call, Case, Contender, autocast, ours
from benchmarks.harness.config import DTYPES, BenchmarkConfig
from benchmarks.suites.end_to_end import SamplingRun
from sedd_fast.models.interface import ScoreEntropyRequest


@dataclass(frozen=True)
class Small:
    """The network, a sequence with half of its tokens masked, and the noise at t = 0.5."""

    model: sf.SEDD
    x_t: Tensor  # (1, L)
    x_0: Tensor
    sigma: Tensor  # (1,)
    weight: Tensor  # (1, L)


def make_small(config: BenchmarkConfig) -> Small:
    """12 blocks of 768 and a vocabulary of 50,257, with random weights."""
    device = torch.device(config.device)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "n_blocks": 1, "n_heads": 2} if config.quick else {}
    model = sf.SEDD(sf.SEDDConfig(vocab_size=config.vocab_size, **size)).to(device)  # type: ignore[arg-type]
    for parameter in model.parameters():  # zeros, as a new network has, might save arithmetic
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.02)
    sigma, rate = sf.LogLinearNoise()(torch.tensor([0.5], device=device))
    x_0 = torch.randint(config.vocab_size, (1, 32 if config.quick else 256), device=device)
    x_t = x_0.clone()
    x_t[:, ::2] = config.vocab_size
    return Small(model, x_t, x_0, sigma, rate[:, None].expand(x_0.shape))


def small_cases(config: BenchmarkConfig) -> Iterator[tuple[Case, ...]]:
    """Loss and gradients (accumulated from call to call, no optimiser), then a sampling run.

    Our two dtypes are measured together, so that the one eager contender, which is slow, is timed
    once for both.
    """
    s = make_small(config)
    shape = f"1 x {s.x_0.shape[1]} tokens, {sum(p.numel() for p in s.model.parameters()):,} weights"

    def case(title: str, dtype: str, eager: Call, own: list[Contender], floor: Call) -> Case:
        found = (Contender("eager in fp32, original", "eager", eager), *own)
        return Case("small", title, shape, dtype, found, floor_runs={"products": floor})

    s.model.train()
    title, eager = "SEDD-small, loss + gradients", eager_gradients(s)
    yield tuple(
        case(title, dtype, eager, gradients(config, s, dtype), gradient_products(s, dtype))
        for dtype in ("fp32", "bf16")
    )
    s.model.eval()
    steps = config.steps
    title, eager = f"SEDD-small, {steps} + 1 steps", eager_sampling(s, steps)
    yield tuple(
        case(title, dtype, eager, sampling(config, s, dtype), step_products(s, dtype, steps))
        for dtype in ("fp32", "bf16")
    )


def eager_gradients(s: Small) -> Call:
    """The original's formulas."""

    def eager() -> None:
        scores = s.model(s.x_t, s.sigma)
        entropy = baselines.score_entropy(scores, s.sigma[:, None], s.x_t, s.x_0, s.model.graph)
        (s.weight * entropy).sum().backward()

    return eager


def gradients(config: BenchmarkConfig, s: Small, dtype: str) -> list[Contender]:
    """Our dense operations, and the fused head."""

    def dense() -> None:
        with autocast(s.x_t.device, dtype):
            scores = s.model(s.x_t, s.sigma)
        sf.score_entropy(scores, s.sigma, s.x_t, s.x_0, s.model.graph, s.weight, "sum").backward()

    def fused() -> None:
        with autocast(s.x_t.device, dtype):
            loss = s.model(s.x_t, s.sigma, ScoreEntropyRequest(s.x_0, s.weight, "sum"))
        loss.backward()

    return ours(config, ", dense", dense) + ours(
        config, ", fused head", fused, op="linear_score_entropy"
    )


def eager_sampling(s: Small, steps: int) -> Call:
    """A run over all times, from pure noise, by the original's formulas in fp32."""
    return SamplingRun(s.model, tuple(s.x_0.shape), steps, "fp32").original_formulas


def sampling(config: BenchmarkConfig, s: Small, dtype: str) -> list[Contender]:
    """The same run by our operations, and by the fused head."""
    run = SamplingRun(s.model, tuple(s.x_0.shape), config.steps, dtype)
    return [
        *ours(config, ", dense", lambda: run.ours(run.scores)),
        *ours(config, ", fused head", lambda: run.ours(s.model), op="linear_reverse_step"),
    ]


class Products:
    """The bare matrix products of every linear layer, into preallocated memory."""

    def __init__(self, s: Small, dtype: str, with_gradients: bool) -> None:
        self.dtype, self.device = DTYPES[dtype], s.x_0.device
        self.with_gradients = with_gradients
        self.head = s.model.output_layer.linear
        # Layers that read the noise level only, once a sequence, are left out: they cost nothing.
        self.body = [
            self._of(layer, s.x_0.numel())
            for name, layer in s.model.blocks.named_modules()
            if isinstance(layer, nn.Linear) and "adaLN" not in name
        ]

    def _of(self, layer: nn.Linear, rows: int) -> Call:
        n, k = layer.out_features, layer.in_features
        on = {"dtype": self.dtype, "device": self.device}
        x, weight, grad = (
            torch.rand(rows, k, **on),
            torch.rand(n, k, **on),
            torch.rand(rows, n, **on),
        )
        out, dx, dw = torch.empty_like(grad), torch.empty_like(x), torch.empty_like(weight)

        def run() -> None:
            torch.mm(x, weight.T, out=out)
            if self.with_gradients:
                torch.mm(grad, weight, out=dx)
                torch.mm(grad.T, x, out=dw)

        return run

    def times(self, rows: list[int]) -> Call:
        """The products of several calls of the network; ``rows`` of each reach the head."""
        heads = [self._of(self.head, count) for count in rows]

        def run() -> None:
            for head in heads:
                for layer in self.body:
                    layer()
                head()

        return run


def gradient_products(s: Small, dtype: str) -> Call:
    """Three products a layer; the masked half of the rows reaches the head."""
    return Products(s, dtype, True).times([s.x_0.numel() // 2])


def step_products(s: Small, dtype: str, steps: int) -> Call:
    """One product a layer and step; the expected number of masked rows reaches the head.

    At t = i / steps of the log-linear schedule the fraction t of the positions is masked.
    """
    rows = [round(s.x_0.numel() * i / steps) for i in range(steps, 0, -1)]
    return Products(s, dtype, False).times(rows)
