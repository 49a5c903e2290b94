"""sampling: predictors, the denoiser, and the sampler that applies them from noise to samples.

A predictor draws with :func:`sedd_fast.reverse_step` from log scores; neither probabilities nor
exponentiated scores are ever built. ``sedd_fast.sample`` and ``sedd_fast.infill`` do the same with
a generator, callbacks and a progress bar.
"""

import abc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sedd_fast.compat.graph_lib import Graph
from sedd_fast.compat.model import utils as mutils
from sedd_fast.compat.noise_lib import NoiseFn
from sedd_fast.names import StepMethod
from sedd_fast.ops import reverse_step

#: ``score_fn(x (B, L), sigma (B, 1))`` -> exponentiated scores (B, L, dim)
ScoreFn = Callable[[Tensor, Tensor], Tensor]

_PREDICTORS: "dict[str, type[Predictor]]" = {}


def register_predictor(cls: Any = None, *, name: str | None = None) -> Any:
    """Class decorator: makes a predictor known under ``name`` (its class name if None)."""

    def register(cls: type[Predictor]) -> type[Predictor]:
        key = name or cls.__name__
        if key in _PREDICTORS:
            raise ValueError(f"a predictor named {key!r} is already registered; take another name")
        _PREDICTORS[key] = cls
        return cls

    return register if cls is None else register(cls)


def get_predictor(name: str) -> "type[Predictor]":
    """The predictor class of that name: "euler", "analytic", "none", or one registered since."""
    if name not in _PREDICTORS:
        known = ", ".join(map(repr, _PREDICTORS))
        raise ValueError(f"predictor must be one of {known}, got {name!r}")
    return _PREDICTORS[name]


class Predictor(abc.ABC):
    """One step of the reverse process."""

    def __init__(self, graph: Graph, noise: NoiseFn) -> None:
        self.graph, self.noise = graph, noise

    @abc.abstractmethod
    def update_fn(self, score_fn: ScoreFn, x: Tensor, t: Tensor, step_size: float) -> Tensor:
        """Tokens at time t - step_size from x (B, L) at time t (B, 1)."""


@register_predictor(name="euler")
class EulerPredictor(Predictor):
    """An Euler step of the reverse rates, of size step_size * noise rate."""

    def update_fn(self, score_fn: ScoreFn, x: Tensor, t: Tensor, step_size: float) -> Tensor:
        sigma, rate = self.noise(t.double())
        return _draw(self.graph, score_fn, x, sigma, step_size * rate, "euler")


@register_predictor(name="none")
class NonePredictor(Predictor):
    """Leaves the tokens as they are."""

    def update_fn(self, score_fn: ScoreFn, x: Tensor, t: Tensor, step_size: float) -> Tensor:
        return x


@register_predictor(name="analytic")
class AnalyticPredictor(Predictor):
    """The exact reverse of the noise between the two times, with the scores held fixed."""

    def update_fn(self, score_fn: ScoreFn, x: Tensor, t: Tensor, step_size: float) -> Tensor:
        # float64: the difference of neighbouring noise levels loses digits in float32
        sigma = self.noise(t.double())[0]
        removed = sigma - self.noise(t.double() - step_size)[0]
        return _draw(self.graph, score_fn, x, sigma, removed, "analytic")


class Denoiser:
    """Removes all remaining noise in one step; with an absorbing graph, no mask is left."""

    def __init__(self, graph: Graph, noise: NoiseFn) -> None:
        self.graph, self.noise = graph, noise

    def update_fn(self, score_fn: ScoreFn, x: Tensor, t: Tensor) -> Tensor:
        """Clean tokens from x (B, L) at time t (B, 1)."""
        return _draw(self.graph, score_fn, x, self.noise(t.double())[0], None, "denoise")


def _draw(
    graph: Any,
    score_fn: ScoreFn,
    x: Tensor,
    sigma: Tensor,
    dsigma: Tensor | None,
    method: StepMethod,
) -> Tensor:
    model_sigma = sigma.float()  # networks take float32
    if isinstance(score_fn, mutils.ScoreFunction):
        log_score = score_fn.log_score(x, model_sigma)
    else:
        log_score = score_fn(x, model_sigma).log()
    return reverse_step(log_score, x, sigma, dsigma, graph, method)


def get_sampling_fn(
    config: Any,
    graph: Graph,
    noise: NoiseFn,
    batch_dims: tuple[int, int],
    eps: float,
    device: torch.device | str,
) -> Callable[[nn.Module], Tensor]:
    """:func:`get_pc_sampler` with ``config.sampling``: predictor, steps, noise_removal."""
    predictor, steps = config.sampling.predictor, config.sampling.steps
    denoise = config.sampling.noise_removal
    return get_pc_sampler(graph, noise, batch_dims, predictor, steps, denoise, eps, device)


def get_pc_sampler(
    graph: Graph,
    noise: NoiseFn,
    batch_dims: tuple[int, int],
    predictor: str,
    steps: int,
    denoise: bool = True,
    eps: float = 1e-5,
    device: torch.device | str = "cpu",
    proj_fun: Callable[[Tensor], Tensor] = lambda x: x,
) -> Callable[[nn.Module], Tensor]:
    """A sampler: ``tokens = pc_sampler(model)``, (B, L) int64.

    Args:
        graph, noise: those the model was trained with.
        batch_dims: (B, L).
        predictor: a registered name.
        steps: predictor steps from time 1 to ``eps``.
        denoise: end with a step that removes all noise left at ``eps``.
        eps: the last time.
        device: the device of the tokens.
        proj_fun: applied to the tokens before every step, to set a prompt; it may write to them.
    """
    stepper, denoiser = get_predictor(predictor)(graph, noise), Denoiser(graph, noise)

    @torch.no_grad()
    def pc_sampler(model: nn.Module) -> Tensor:
        score_fn = mutils.get_score_fn(model, train=False, sampling=True)
        x = graph.sample_limit(*batch_dims).to(device)
        times = torch.linspace(1, eps, steps + 1, dtype=torch.float32, device=device)
        for i in range(steps):
            t = times[i].expand(len(x), 1)
            x = stepper.update_fn(score_fn, proj_fun(x), t, (1 - eps) / steps)
        if denoise:
            x = denoiser.update_fn(score_fn, proj_fun(x), times[-1].expand(len(x), 1))
        return x

    return pc_sampler
