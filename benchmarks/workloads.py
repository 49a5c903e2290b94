"""End to end: a training step and a sampling run of a small network, everybody on the same one.

The network is ``sedd_fast.SEDD`` for all; what differs is the loss or the reverse step. The floor
is the network alone: the same forward (and backward, and optimiser) with nothing computed from the
scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import baselines
import torch
from cases import Call, Case, Field, ours, static
from original import Original
from settings import DTYPES, Settings
from torch import Tensor

import sedd_fast as sf
from sedd_fast.models.config import SEDDConfig
from sedd_fast.models.interface import ScoreEntropyRequest, ScoreModel
from sedd_fast.models.sedd import SEDD
from sedd_fast.sampling.api import sample


def network(settings: Settings, device: torch.device) -> SEDD:
    """A small transformer over the whole vocabulary, so that the scores are most of its work."""
    torch.manual_seed(0)
    config = SEDDConfig(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        n_blocks=settings.n_blocks,
        n_heads=4,
        length=settings.positions // 4,
    )
    return SEDD(config).to(device)


def end_to_end_cases(settings: Settings, original: Original | None) -> Iterator[Case]:
    """The cases of the suites "train" and "sample" that were asked for."""
    field, device = Field(settings, original), torch.device(settings.device)
    for dtype in settings.dtypes:
        if "train" in settings.suites:
            yield training(field, device, dtype)
        if "sample" in settings.suites:
            yield sampling(field, device, dtype)


def _describe(settings: Settings, shape: tuple[int, int]) -> str:
    return (
        f"{shape[0]} x {shape[1]} tokens, {settings.vocab_size:,} words, "
        f"{settings.n_blocks} blocks of {settings.hidden_size}"
    )


@dataclass(frozen=True)
class Training:
    """One optimiser step: noise, network, loss, backward, AdamW. The times are fixed."""

    model: SEDD
    optimizer: torch.optim.Optimizer
    x_0: Tensor  # (B, L)
    t: Tensor  # (B,), spread evenly over (0, 1)
    autocast: Callable[[], torch.autocast]

    def noise(self) -> tuple[Tensor, Tensor]:
        """sigma (B, 1) and the weight of every position's loss (B, L)."""
        sigma, rate = self.model.noise(self.t)
        weight = (rate / len(self.t))[:, None].expand(self.x_0.shape)
        return sigma[:, None], weight

    def scores(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """(B, L, dim)."""
        with self.autocast():
            return self.model(x_t, sigma.squeeze(-1))

    def update(self) -> None:
        """The optimiser's step; the gradients are freed, as is usual."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def by_autograd(
        self,
        transition: Callable[[Tensor, Tensor], Tensor],
        loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    ) -> None:
        """A step whose ``loss(log_score, sigma, x_t, weight)`` is a scalar under autograd."""
        sigma, weight = self.noise()
        x_t = transition(self.x_0, sigma)
        loss(self.scores(x_t, sigma), sigma, x_t, weight).backward()
        self.update()

    def one_pass(self) -> None:
        """A step that gets loss and gradient together."""
        sigma, weight = self.noise()
        x_t = sf.sample_transition(self.x_0, sigma, self.model.graph)
        log_score = self.scores(x_t, sigma)
        _, grad = sf.score_entropy_with_grad(
            log_score, sigma, x_t, self.x_0, self.model.graph, weight
        )
        log_score.backward(grad)
        self.update()

    def fused(self) -> None:
        """A step through the network's fused head: no scores, only touched rows."""
        sigma, weight = self.noise()
        x_t = sf.sample_transition(self.x_0, sigma, self.model.graph)
        with self.autocast():
            loss = self.model(x_t, sigma.squeeze(-1), ScoreEntropyRequest(self.x_0, weight, "sum"))
        loss.backward()
        self.update()

    def network_alone(self, grad: Tensor) -> None:
        """Everything but the loss, from a gradient that is there."""
        sigma, _ = self.noise()
        self.scores(self.x_0, sigma).backward(grad)
        self.update()


def training(field: Field, device: torch.device, dtype: str) -> Case:
    """The case of one training step."""
    settings = field.settings
    model = network(settings, device).train()
    graph, kind, V = model.graph, model.graph.kind, model.graph.vocab_size
    shape = (4, settings.positions // 4)
    run = Training(
        model,
        torch.optim.AdamW(model.parameters(), lr=1e-5),
        torch.randint(V, shape, device=device),
        (torch.arange(4, device=device) + 0.5) / 4,
        lambda: torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "fp32"),
    )
    x_0, theirs = run.x_0, field.original

    def eager_noise(x_0: Tensor, sigma: Tensor) -> Tensor:
        return baselines.sample_transition(x_0, sigma, graph)

    def eager(log_score: Tensor, sigma: Tensor, x_t: Tensor, weight: Tensor) -> Tensor:
        return (weight * baselines.score_entropy(log_score, sigma, x_t, x_0, graph)).sum()

    def original(log_score: Tensor, sigma: Tensor, x_t: Tensor, weight: Tensor) -> Tensor:
        assert theirs is not None
        return (weight * theirs.score_entropy(graph, log_score, sigma, x_t, x_0)).sum()

    def plain(log_score: Tensor, sigma: Tensor, x_t: Tensor, weight: Tensor) -> Tensor:
        return static("entropy")(log_score, sigma, x_t, x_0, weight, kind, V)

    def dense(log_score: Tensor, sigma: Tensor, x_t: Tensor, weight: Tensor) -> Tensor:
        return sf.score_entropy(log_score, sigma, x_t, x_0, graph, weight, "sum")

    def our_noise(x_0: Tensor, sigma: Tensor) -> Tensor:
        return sf.sample_transition(x_0, sigma, graph)

    found = field.others(
        lambda: run.by_autograd(eager_noise, eager),
        lambda: run.by_autograd(eager_noise, plain),
        None,
        lambda: run.by_autograd(eager_noise, original),
    )
    found += ours(settings, ", autograd", lambda: run.by_autograd(our_noise, dense))
    found += ours(settings, ", one pass", run.one_pass)
    found += ours(settings, ", fused head", run.fused, head=True)
    grad = torch.full((*shape, graph.dim), 1e-9, device=device)
    return Case(
        "train",
        "training step",
        _describe(settings, shape),
        dtype,
        tuple(found),
        floor_runs={"network": lambda: run.network_alone(grad)},
    )


def sampling(field: Field, device: torch.device, dtype: str) -> Case:
    """The case of one sampling run, analytic steps and the denoising one."""
    settings = field.settings
    model = network(settings, device).eval()
    graph, noise, steps = model.graph, model.noise, settings.steps
    shape = (4, settings.positions // 4)

    def scores(x_t: Tensor, sigma: Tensor) -> Tensor:
        with torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "fp32"):
            return model(x_t, sigma)

    def walk(step: Callable[[Tensor, Tensor, Tensor, str], Tensor]) -> Call:
        return lambda: baselines.sample(scores, graph, noise, shape, steps, device, step)

    def eager(log_score: Tensor, x_t: Tensor, dsigma: Tensor, method: str) -> Tensor:
        return baselines.reverse_step(log_score, x_t, dsigma, graph, method)

    def original(log_score: Tensor, x_t: Tensor, dsigma: Tensor, method: str) -> Tensor:
        assert field.original is not None
        return field.original.reverse_step(graph, log_score, x_t, dsigma, method)

    def plain(log_score: Tensor, x_t: Tensor, dsigma: Tensor, method: str) -> Tensor:
        step = static("race_step")
        return step(log_score, x_t, dsigma, graph.kind, graph.vocab_size, method)

    def rewritten(log_score: Tensor, x_t: Tensor, dsigma: Tensor, method: str) -> Tensor:
        step = static("inverse_cdf_step")
        return step(log_score, x_t, dsigma, graph.kind, graph.vocab_size, method)

    def ours_on(network: ScoreModel) -> Call:
        def run() -> Tensor:
            with torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "fp32"):
                return sample(network, graph, noise, shape, steps=steps, device=device)

        return torch.no_grad()(run)

    found = field.others(walk(eager), walk(plain), walk(rewritten), walk(original))
    found += ours(settings, "", ours_on(scores))
    found += ours(settings, ", fused head", ours_on(model), head=True)
    return Case(
        "sample",
        f"sampling run, {steps} + 1 steps",
        _describe(settings, shape),
        dtype,
        tuple(found),
        floor_runs={"network": walk(lambda log_score, x_t, dsigma, method: x_t)},
    )
