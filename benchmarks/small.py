"""SEDD-small, one sequence: gradients of the loss, and a sampling run, against fp32 eager formulas.

What a researcher without a GPU waits for. The eager contender runs as the original code runs on a
CPU, in fp32, whatever dtype ours takes under autocast. The floor is the bare matrix products of the
network's linear layers in ours' dtype, those of the head for the touched rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import baselines
import torch
from cases import Call, Case, Contender, ours
from settings import DTYPES, Settings
from torch import Tensor, nn

import sedd_fast as sf
from sedd_fast.models.config import SEDDConfig
from sedd_fast.models.interface import ScoreEntropyRequest
from sedd_fast.models.sedd import SEDD


@dataclass(frozen=True)
class Small:
    """The network, a half masked sequence, and the noise at t = 0.5."""

    model: SEDD
    x_t: Tensor  # (1, L)
    x_0: Tensor
    sigma: Tensor  # (1,)
    weight: Tensor  # (1, L)

    def autocast(self, dtype: str) -> AbstractContextManager[object]:
        """In that dtype."""
        return torch.autocast(self.x_t.device.type, DTYPES[dtype], enabled=dtype != "fp32")


def make_small(settings: Settings) -> Small:
    """12 blocks of 768 and a vocabulary of 50,257, with random weights."""
    device = torch.device(settings.device)
    torch.manual_seed(0)
    tiny = settings.hidden_size < 256  # --quick
    size = {"hidden_size": 32, "n_blocks": 1, "n_heads": 2} if tiny else {}
    model = SEDD(SEDDConfig(vocab_size=settings.vocab_size, **size)).to(device)  # type: ignore[arg-type]
    for parameter in model.parameters():  # a fresh network's zeros would spare it arithmetic
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.02)
    sigma, rate = sf.LogLinearNoise()(torch.tensor([0.5], device=device))
    x_0 = torch.randint(settings.vocab_size, (1, 32 if tiny else 256), device=device)
    x_t = x_0.clone()
    x_t[:, ::2] = settings.vocab_size
    return Small(model, x_t, x_0, sigma, rate[:, None].expand(x_0.shape))


def small_cases(settings: Settings) -> Iterator[tuple[Case, ...]]:
    """Loss and gradients (kept from call to call, no optimiser), then a sampling run.

    Both dtypes of ours together, so that the one eager contender, which is slow, is called for
    both at once.
    """
    s = make_small(settings)
    shape = f"1 x {s.x_0.shape[1]} tokens, {sum(p.numel() for p in s.model.parameters()):,} weights"

    def case(title: str, dtype: str, eager: Call, own: list[Contender], floor: Call) -> Case:
        found = (Contender("eager in fp32, original", "eager", eager), *own)
        return Case("small", title, shape, dtype, found, floor_runs={"products": floor})

    s.model.train()
    title, eager = "SEDD-small, loss + gradients", eager_gradients(s)
    yield tuple(
        case(title, dtype, eager, gradients(settings, s, dtype), gradient_products(s, dtype))
        for dtype in ("fp32", "bf16")
    )
    s.model.eval()
    steps = settings.steps
    title, eager = f"SEDD-small, {steps} + 1 steps", eager_sampling(s, steps)
    yield tuple(
        case(title, dtype, eager, sampling(settings, s, dtype), step_products(s, dtype, steps))
        for dtype in ("fp32", "bf16")
    )


def eager_gradients(s: Small) -> Call:
    """The original's formulas."""

    def eager() -> None:
        scores = s.model(s.x_t, s.sigma)
        entropy = baselines.score_entropy(scores, s.sigma[:, None], s.x_t, s.x_0, s.model.graph)
        (s.weight * entropy).sum().backward()

    return eager


def gradients(settings: Settings, s: Small, dtype: str) -> list[Contender]:
    """Our dense operations, and the fused head."""

    def dense() -> None:
        with s.autocast(dtype):
            scores = s.model(s.x_t, s.sigma)
        sf.score_entropy(scores, s.sigma, s.x_t, s.x_0, s.model.graph, s.weight, "sum").backward()

    def fused() -> None:
        with s.autocast(dtype):
            loss = s.model(s.x_t, s.sigma, ScoreEntropyRequest(s.x_0, s.weight, "sum"))
        loss.backward()

    return ours(settings, ", dense", dense) + ours(settings, ", fused head", fused, head=True)


def eager_sampling(s: Small, steps: int) -> Call:
    """A run over all of time, from pure noise, by the original's formulas."""
    model, shape = s.model, tuple(s.x_0.shape)

    def draw(log_score: Tensor, x_t: Tensor, dsigma: Tensor, method: str) -> Tensor:
        return baselines.reverse_step(log_score, x_t, dsigma, model.graph, method)

    @torch.no_grad()
    def eager() -> Tensor:
        return baselines.sample(model, model.graph, model.noise, shape, steps, s.x_0.device, draw)

    return eager


def sampling(settings: Settings, s: Small, dtype: str) -> list[Contender]:
    """The same run by our operations, and by the fused head."""
    model, device = s.model, s.x_0.device
    graph, noise, shape, steps = model.graph, model.noise, tuple(s.x_0.shape), settings.steps

    def ours_on(network: Callable[..., Tensor]) -> Call:
        def run() -> Tensor:
            with s.autocast(dtype):
                return sf.sample(network, graph, noise, shape, steps=steps, device=device)

        return run

    dense = ours_on(lambda x, sigma: model(x, sigma))
    return ours(settings, ", dense", dense) + ours(
        settings, ", fused head", ours_on(model), head=True
    )


class Products:
    """The bare matrix products of every linear layer, into memory that is there already."""

    def __init__(self, s: Small, dtype: str, with_gradients: bool) -> None:
        self.dtype, self.device = DTYPES[dtype], s.x_0.device
        self.with_gradients = with_gradients
        self.head = s.model.output_layer.linear
        # Layers that see the noise alone, once a sequence, are left out: nothing beside the others.
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
        """As many calls of the network, in each of which so many rows reach the head."""
        heads = [self._of(self.head, count) for count in rows]

        def run() -> None:
            for head in heads:
                for layer in self.body:
                    layer()
                head()

        return run


def gradient_products(s: Small, dtype: str) -> Call:
    """Three products a layer; the masked half of the rows reach the head."""
    return Products(s, dtype, True).times([s.x_0.numel() // 2])


def step_products(s: Small, dtype: str, steps: int) -> Call:
    """One product a layer in each step that finds something masked, as many as expected.

    At t = i / steps of the log-linear schedule that is the share t of the positions.
    """
    rows = [round(s.x_0.numel() * i / steps) for i in range(steps, 0, -1)]
    return Products(s, dtype, False).times(rows)
