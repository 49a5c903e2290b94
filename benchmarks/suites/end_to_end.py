"""End to end: a training step and a sampling run of a small network, the same for all contenders.

The network is ``sedd_fast.SEDD`` for all; what differs is the loss or the reverse step. The floor
is the network alone: the same forward (and backward, and optimiser) with nothing computed from the
scores.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import sedd_fast as sf
from benchmarks.contenders import baselines, compiled
from benchmarks.contenders.compiled import compile_static
from benchmarks.contenders.original import Original
from benchmarks.contenders.rivals import Rivals
from benchmarks.harness.cases import Call, Case, autocast, ours
from benchmarks.harness.config import BenchmarkConfig
from sedd_fast.models.interface import ScoreEntropyRequest, ScoreModel

#: One reverse step: (log_score, x_t, dsigma (B, 1), method) -> x_s.
ReverseStep = Callable[[Tensor, Tensor, Tensor, str], Tensor]


def network(config: BenchmarkConfig, device: torch.device) -> sf.SEDD:
    """A small transformer over the whole vocabulary, so that the scores are most of its work."""
    torch.manual_seed(0)
    model = sf.SEDDConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        n_blocks=config.n_blocks,
        n_heads=4,
        length=config.positions // 4,
    )
    return sf.SEDD(model).to(device)


def end_to_end_cases(config: BenchmarkConfig, original: Original | None) -> Iterator[Case]:
    """The cases of the suites "train" and "sample" that were asked for."""
    rivals, device = Rivals(config, original), torch.device(config.device)
    for dtype in config.dtypes:
        if "train" in config.suites:
            yield training(rivals, device, dtype)
        if "sample" in config.suites:
            yield sampling(rivals, device, dtype)


def _describe(config: BenchmarkConfig, shape: tuple[int, int]) -> str:
    return (
        f"{shape[0]} x {shape[1]} tokens, {config.vocab_size:,} words, "
        f"{config.n_blocks} blocks of {config.hidden_size}"
    )


# --- training -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """One optimiser step: noise, network, loss, backward, AdamW. The times are fixed."""

    model: sf.SEDD
    optimizer: torch.optim.Optimizer
    x_0: Tensor  # (B, L)
    dtype: str  # of the network, under autocast

    def noise(self) -> tuple[Tensor, Tensor]:
        """sigma (B, 1) and the weight of every position's loss (B, L), of B times evenly spread
        over (0, 1).
        """
        batch = len(self.x_0)
        t = (torch.arange(batch, device=self.x_0.device) + 0.5) / batch
        sigma, rate = self.model.noise(t)
        return sigma[:, None], (rate / batch)[:, None].expand(self.x_0.shape)

    def scores(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """(B, L, dim)."""
        with autocast(x_t.device, self.dtype):
            return self.model(x_t, sigma.squeeze(-1))

    def update(self) -> None:
        """The optimiser's step; the gradients are freed, as is usual."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def by_autograd(
        self,
        transition: Callable[[Tensor, Tensor, sf.Graph], Tensor],
        loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    ) -> None:
        """A step whose ``loss(log_score, sigma, x_t, weight)`` is a scalar under autograd."""
        sigma, weight = self.noise()
        x_t = transition(self.x_0, sigma, self.model.graph)
        loss(self.scores(x_t, sigma), sigma, x_t, weight).backward()
        self.update()

    def original_formulas(self) -> None:
        """A step by the original's formulas, under autograd."""

        def loss(log_score: Tensor, sigma: Tensor, x_t: Tensor, weight: Tensor) -> Tensor:
            entropy = baselines.score_entropy(log_score, sigma, x_t, self.x_0, self.model.graph)
            return (weight * entropy).sum()

        self.by_autograd(baselines.sample_transition, loss)

    def dense(self) -> None:
        """A step with our loss of the network's scores, under autograd."""

        def loss(log_score: Tensor, sigma: Tensor, x_t: Tensor, weight: Tensor) -> Tensor:
            graph = self.model.graph
            return sf.score_entropy(log_score, sigma, x_t, self.x_0, graph, weight, "sum")

        self.by_autograd(sf.sample_transition, loss)

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
        """A step through the network's fused head: it makes no scores, and reads only the rows that
        noise touched.
        """
        sigma, weight = self.noise()
        x_t = sf.sample_transition(self.x_0, sigma, self.model.graph)
        with autocast(x_t.device, self.dtype):
            loss = self.model(x_t, sigma.squeeze(-1), ScoreEntropyRequest(self.x_0, weight, "sum"))
        loss.backward()
        self.update()

    def network_alone(self, grad: Tensor) -> None:
        """Everything but the loss, from a given gradient of the scores."""
        sigma, _ = self.noise()
        self.scores(self.x_0, sigma).backward(grad)
        self.update()


def training(rivals: Rivals, device: torch.device, dtype: str) -> Case:
    """The case of one training step."""
    config, theirs = rivals.config, rivals.original
    model = network(config, device).train()
    graph, shape = model.graph, (4, config.positions // 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    x_0 = torch.randint(graph.vocab_size, shape, device=device)
    run = Training(model, optimizer, x_0, dtype)

    def original(log_score: Tensor, sigma: Tensor, x_t: Tensor, weight: Tensor) -> Tensor:
        assert theirs is not None
        return (weight * theirs.score_entropy(graph, log_score, sigma, x_t, x_0)).sum()

    def plain(log_score: Tensor, sigma: Tensor, x_t: Tensor, weight: Tensor) -> Tensor:
        return compile_static(compiled.entropy)(log_score, sigma, x_t, x_0, weight, graph)

    def by(loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Call:
        return lambda: run.by_autograd(baselines.sample_transition, loss)

    found = rivals.contenders(run.original_formulas, by(plain), original=by(original))
    found += ours(config, ", autograd", run.dense)
    found += ours(config, ", one pass", run.one_pass)
    found += ours(config, ", fused head", run.fused, op="linear_score_entropy")
    grad = torch.full((*shape, graph.dim), 1e-9, device=device)
    return Case(
        "train",
        "training step",
        _describe(config, shape),
        dtype,
        tuple(found),
        floor_runs={"network": lambda: run.network_alone(grad)},
    )


# --- sampling -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SamplingRun:
    """A whole sampling run: ``steps`` analytic steps from t = 1 to 1e-5, then a denoising one."""

    model: sf.SEDD
    shape: tuple[int, int]
    steps: int
    dtype: str  # of the network, under autocast

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.model.parameters()).device

    def scores(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """(B, L, dim): a network whose head is not used."""
        with autocast(self.device, self.dtype):
            return self.model(x_t, sigma)

    @torch.no_grad()
    def eager(self, step: ReverseStep) -> Tensor:
        """Tokens (B, L), by a plain loop over ``step``."""
        x = self.model.graph.sample_limit(self.shape, device=self.device)
        times = torch.linspace(1, 1e-5, self.steps + 1, device=self.device)
        sigmas = self.model.noise.sigma(times)
        for i in range(self.steps + 1):
            last = i == self.steps
            sigma = sigmas[i].expand(self.shape[0], 1)
            dsigma = sigma if last else sigma - sigmas[i + 1]
            log_score = self.scores(x, sigma.squeeze(-1))
            x = step(log_score, x, dsigma, "denoise" if last else "analytic")
        return x

    def original_formulas(self) -> Tensor:
        """Tokens (B, L), by the original's formulas."""

        def step(log_score: Tensor, x_t: Tensor, dsigma: Tensor, method: str) -> Tensor:
            return baselines.reverse_step(log_score, x_t, dsigma, self.model.graph, method)

        return self.eager(step)

    @torch.no_grad()
    def ours(self, network: ScoreModel) -> Tensor:
        """Tokens (B, L), by ``sedd_fast.sample``."""
        graph, noise = self.model.graph, self.model.noise
        with autocast(self.device, self.dtype):
            return sf.sample(
                network, graph, noise, self.shape, steps=self.steps, device=self.device
            )


def sampling(rivals: Rivals, device: torch.device, dtype: str) -> Case:
    """The case of one sampling run, analytic steps and the denoising one."""
    config, theirs = rivals.config, rivals.original
    model = network(config, device).eval()
    graph, shape = model.graph, (4, config.positions // 4)
    run = SamplingRun(model, shape, config.steps, dtype)

    def original(log_score: Tensor, x_t: Tensor, dsigma: Tensor, method: str) -> Tensor:
        assert theirs is not None
        return theirs.reverse_step(graph, log_score, x_t, dsigma, method)

    def plain(log_score: Tensor, x_t: Tensor, dsigma: Tensor, method: str) -> Tensor:
        return compile_static(compiled.race_step)(log_score, x_t, dsigma, graph, method)

    def rewritten(log_score: Tensor, x_t: Tensor, dsigma: Tensor, method: str) -> Tensor:
        return compile_static(compiled.inverse_cdf_step)(log_score, x_t, dsigma, graph, method)

    def by(step: ReverseStep) -> Call:
        return lambda: run.eager(step)

    found = rivals.contenders(run.original_formulas, by(plain), by(rewritten), by(original))
    found += ours(config, "", lambda: run.ours(run.scores))
    found += ours(config, ", fused head", lambda: run.ours(model), op="linear_reverse_step")
    return Case(
        "sample",
        f"sampling run, {config.steps} + 1 steps",
        _describe(config, shape),
        dtype,
        tuple(found),
        floor_runs={"network": by(lambda log_score, x_t, dsigma, method: x_t)},
    )
