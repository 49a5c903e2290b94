"""SEDD-small, one sequence: gradients of the loss, and a sampling run, against fp32 eager formulas.

What a researcher without a GPU waits for. The eager contender runs as the original code runs on a
CPU, in fp32, whatever dtype ours takes under autocast. The floor is the network without its head.
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
from sedd_fast.model import SEDD, SEDDConfig


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


def small_cases(settings: Settings) -> Iterator[Case]:
    """Loss and gradients (kept from call to call, no optimiser), then a sampling run."""
    s = make_small(settings)
    shape = f"1 x {s.x_0.shape[1]} tokens, {sum(p.numel() for p in s.model.parameters()):,} weights"
    for dtype in ("fp32", "bf16"):
        s.model.train()
        floor = {"network": gradients_alone(s, dtype)}
        found = gradients(settings, s, dtype)
        yield Case("small", "SEDD-small, loss + gradients", shape, dtype, found, floor_runs=floor)
        s.model.eval()
        steps = settings.steps
        title, found = f"SEDD-small, {steps} + 1 steps", sampling(settings, s, dtype)
        floor = {"network": steps_alone(s, dtype, steps)}
        yield Case("small", title, shape, dtype, found, floor_runs=floor)


def gradients(settings: Settings, s: Small, dtype: str) -> tuple[Contender, ...]:
    """The eager formulas in fp32, our dense operations, and the fused head."""

    def eager() -> None:
        scores = s.model(s.x_t, s.sigma)
        entropy = baselines.score_entropy(scores, s.sigma[:, None], s.x_t, s.x_0, s.model.graph)
        (s.weight * entropy).sum().backward()

    def dense() -> None:
        with s.autocast(dtype):
            scores = s.model(s.x_t, s.sigma)
        sf.score_entropy(scores, s.sigma, s.x_t, s.x_0, s.model.graph, s.weight, "sum").backward()

    def fused() -> None:
        with s.autocast(dtype):
            loss = s.model(s.x_t, s.sigma, s.x_0, s.weight, "sum")
        loss.backward()

    found = [Contender("eager in fp32, original", "eager", eager)]
    found += ours(settings, ", dense", dense)
    return tuple(found + ours(settings, ", fused head", fused, head=True))


def gradients_alone(s: Small, dtype: str) -> Call:
    """The network but for its head."""

    def run() -> None:
        with s.autocast(dtype):
            hidden = s.model.features(s.x_t, s.sigma)
        hidden.sum().backward()

    return run


def sampling(settings: Settings, s: Small, dtype: str) -> tuple[Contender, ...]:
    """A run over all of time, from pure noise."""
    model, device = s.model, s.x_0.device
    graph, noise, shape, steps = model.graph, model.noise, tuple(s.x_0.shape), settings.steps

    def draw(log_score: Tensor, x_t: Tensor, dsigma: Tensor, method: str) -> Tensor:
        return baselines.reverse_step(log_score, x_t, dsigma, graph, method)

    def eager() -> Tensor:
        return baselines.sample(model, graph, noise, shape, steps, device, draw)

    def ours_on(network: Callable[..., Tensor]) -> Call:
        def run() -> Tensor:
            with s.autocast(dtype):
                return sf.sample(network, graph, noise, shape, steps=steps, device=device)

        return run

    found = [Contender("eager in fp32, original", "eager", torch.no_grad()(eager))]
    found += ours(settings, ", dense", ours_on(lambda x, sigma: model(x, sigma)))
    return tuple(found + ours(settings, ", fused head", ours_on(model), head=True))


def steps_alone(s: Small, dtype: str, steps: int) -> Call:
    """As many calls of the network but for its head."""

    @torch.no_grad()
    def run() -> None:
        with s.autocast(dtype):
            for _ in range(steps + 1):
                s.model.features(s.x_t, s.sigma)

    return run
