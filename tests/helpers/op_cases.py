"""Backends, inputs, naive formulas and tolerances for the tests of the operations.

The naive formulas are the dense definitions of the paper, in the dtype of their input. In float64
they check the reference independently. In the dtype under test they set the tolerance: a result may
be no further from the truth than the naive formula in the same dtype, plus a little.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sedd_fast as sf
from sedd_fast.backends import reference, registry
from sedd_fast.backends.inputs import ReverseInputs
from sedd_fast.ops._arguments import process


@dataclass(frozen=True)
class Backend:
    """A backend and the device that its tests run on."""

    name: str
    device: str

    def __str__(self) -> str:
        return self.name if self.device == "cpu" else f"{self.name}-{self.device}"

    @property
    def interpreted(self) -> bool:
        """Whether its kernels run in Triton's interpreter, which takes milliseconds a position."""
        return self.name == "triton" and self.device == "cpu"

    @property
    def raises(self) -> bool:
        """Whether a row without a distribution is an error; GPU kernels keep its token instead."""
        return self.name in ("reference", "cpp") and self.device == "cpu"

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The dtypes of scores that the backend supports."""
        return tuple(registry.module(self.name).DTYPES)

    @property
    def widest(self) -> torch.dtype:
        """float64 where the backend supports it, else float32."""
        return torch.float64 if torch.float64 in self.dtypes else torch.float32

    @property
    def opchecks(self) -> tuple[str, ...]:
        """The checks of torch.library.opcheck; tracing is of code that all backends share."""
        metadata = ("test_schema", "test_faketensor")
        if self.name != "reference" and self.device == "cpu":
            return metadata
        return (*metadata, "test_autograd_registration", "test_aot_dispatch_dynamic")

    def rounding(self, dtype: torch.dtype) -> float:
        """The largest relative error of one rounding to ``dtype``."""
        truncates = self.interpreted and dtype == torch.bfloat16  # GPUs round
        return torch.finfo(dtype).eps * (1 if truncates else 0.5)

    def some(self, many: int, few: int) -> int:
        """``few`` where a position takes milliseconds, else ``many``."""
        return few if self.interpreted else many


def backends() -> list[Any]:
    """Every backend; the reference also on a GPU if there is one."""
    found: list[Any] = [Backend("reference", "cpu"), Backend("cpp", "cpu")]
    if torch.cuda.is_available():
        found.append(pytest.param(Backend("reference", "cuda"), marks=pytest.mark.gpu))
    return [*found, *gpu_backends("triton", "cuda")]


def gpu_backends(*names: str) -> list[Any]:
    """Backends of a GPU (marked gpu); without one, those of Triton, in its interpreter."""
    if not torch.cuda.is_available():
        return [Backend(name, "cpu") for name in names if name != "cuda"]
    return [pytest.param(Backend(name, "cuda"), marks=pytest.mark.gpu) for name in names]


#: Every conformance test runs on each of these.
BACKENDS = backends()
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
METHODS = ("analytic", "euler", "denoise")
GRAPHS = (sf.Absorbing(11), sf.Uniform(11))
#: Sizes near those of vectors (8, 16), chunks (512) and blocks (2048); big ones in float32 only.
VOCABULARIES = (2, 3, 17, 511, 513)
BIG_VOCABULARIES = (512, 1023, 4097)
#: Those that run in Triton's interpreter: less than a block, a whole one, and more.
INTERPRETED_VOCABULARIES = (2, 512, 513, 1023)
#: The "little" of the rule, relative to the sum of the absolute terms. Sums are in float32 for
#: every dtype but float64.
TOLERANCE = {
    torch.float32: 1e-6,
    torch.bfloat16: 1e-6,
    torch.float16: 1e-6,
    torch.float64: 1e-14,
}


@dataclass(frozen=True)
class Inputs:
    """The tensors that the operations take."""

    graph: sf.Graph
    log_score: Tensor  # (B, L, dim)
    sigma: Tensor  # (B,)
    dsigma: Tensor  # (B,)
    x_t: Tensor  # (B, L)
    x_0: Tensor  # (B, L)
    row_weight: Tensor  # (B, L)
    u: Tensor  # (B, L, 2)

    def entropy(self) -> tuple[Tensor, Tensor, Tensor, Tensor, sf.Graph]:
        """The positional arguments of score_entropy."""
        return self.log_score, self.sigma, self.x_t, self.x_0, self.graph

    def reverse(self) -> tuple[Tensor, Tensor, Tensor, Tensor, sf.Graph]:
        """The positional arguments of reverse_step."""
        return self.log_score, self.x_t, self.sigma, self.dsigma, self.graph

    def double(self) -> "Inputs":
        return replace(self, log_score=self.log_score.detach().double())


def vocabularies_and_dtypes() -> list[tuple[sf.Graph, torch.dtype]]:
    """Graphs with odd vocabularies in every dtype, and with big ones in float32."""
    every = [(graph, dtype) for graph in graphs_of(VOCABULARIES) for dtype in DTYPES]
    return every + [(graph, torch.float32) for graph in graphs_of(BIG_VOCABULARIES)]


def golden(graph: sf.Graph) -> dict[str, Tensor]:
    """Inputs and results of the original code on that graph, by name; float64."""
    load_file = pytest.importorskip("safetensors.torch").load_file
    values = load_file(Path(__file__).parents[1] / "golden" / "process.safetensors")
    own = f"{graph.kind}."
    return {name.removeprefix(own): v for name, v in values.items() if name.startswith(own)}


def graph_id(value: object) -> str | None:
    """The name of a graph (or dtype) in a test's name."""
    if isinstance(value, sf.Graph):
        return f"{value.kind}-{value.vocab_size}"
    return str(value) if isinstance(value, torch.dtype) else None


def graphs_of(vocabularies: tuple[int, ...]) -> tuple[sf.Graph, ...]:
    return tuple(make(size) for size in vocabularies for make in (sf.Absorbing, sf.Uniform))


def make_inputs(
    graph: sf.Graph,
    dtype: torch.dtype = torch.float32,
    shape: tuple[int, int] = (3, 8),
    *,
    sigma: float | None = None,
    spread: float = 2.0,
    device: str = "cpu",
    seed: int = 0,
) -> Inputs:
    """Random inputs in which about half of the tokens are noised; log_score is 0 at x_t."""
    generator = torch.Generator().manual_seed(seed)
    batch, _ = shape

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    x_0 = real_tokens(torch.randint(graph.vocab_size, shape, generator=generator), graph)
    noised = torch.rand(shape, generator=generator) < 0.5
    noised.view(-1)[:2] = torch.tensor([True, False])[: noised.numel()]
    x_t = torch.where(noised, graph.sample_limit(shape, generator=generator), x_0)
    sigmas = normal(batch).exp() if sigma is None else torch.full((batch,), sigma).double()
    log_score = (spread * normal(*shape, graph.dim)).scatter(-1, x_t[..., None], 0.0)
    inputs = Inputs(
        graph=graph,
        log_score=log_score.to(dtype),
        sigma=sigmas,
        dsigma=sigmas * 0.3,
        x_t=x_t,
        x_0=x_0,
        row_weight=normal(*shape).exp(),
        u=torch.rand((*shape, 2), generator=generator, dtype=torch.float64),
    )
    moved = {
        name: value.to(device) for name, value in vars(inputs).items() if isinstance(value, Tensor)
    }
    return replace(inputs, **moved)


def real_tokens(numbers: Tensor, graph: sf.Graph) -> Tensor:
    """The real tokens of numbers 0 .. V - 1, in the order of the states."""
    return numbers if graph.mask_index is None else numbers + (numbers >= graph.mask_index).long()


def _transition_row(tokens: Tensor, noise: Tensor, graph: sf.Graph) -> Tensor:
    """p(y | x_0) for every y, (B, L, dim); noise (B, 1) sets the dtype."""
    keep, lost = torch.exp(-noise)[..., None], -torch.expm1(-noise)[..., None]
    row = keep * F.one_hot(tokens, graph.dim).to(noise.dtype)
    if graph.mask_index is None:
        return row + lost / graph.vocab_size
    row[..., graph.mask_index] += lost[..., 0]
    return row


def _rates_in(x_t: Tensor, graph: sf.Graph, dtype: torch.dtype) -> Tensor:
    """Q[x_t, y], the rate of y -> x_t, (B, L, dim), 0 at y = x_t."""
    others = reference.other_states(x_t, graph.dim)
    if graph.mask_index is None:
        return others.to(dtype) / graph.vocab_size
    return (others & (x_t == graph.mask_index)[..., None]).to(dtype)


def naive_score_entropy(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Equation 5 in the dtype of log_score: the loss (B, L), its gradient, the terms' size (B, L).

    sum over y of Q[x_t, y] * (s_y - r_y ln s_y + r_y (ln r_y - 1)).
    """
    l, dtype = inputs.log_score, inputs.log_score.dtype  # noqa: E741
    at = _transition_row(inputs.x_0, inputs.sigma.to(dtype)[:, None], inputs.graph)
    rate = _rates_in(inputs.x_t, inputs.graph, dtype)
    ratio = torch.where(rate > 0, at / at.gather(-1, inputs.x_t[..., None]), 0)
    terms = (l.exp(), -torch.where(ratio > 0, ratio * l, 0), torch.xlogy(ratio, ratio) - ratio)
    kept = [torch.where(rate > 0, rate * term, 0) for term in terms]
    size = sum(term.double().abs().sum(-1) for term in kept)
    gradient = torch.where(rate > 0, rate * (l.exp() - ratio), 0)
    return sum(kept).sum(-1), gradient, size


def naive_reverse_probs(inputs: Inputs, method: str) -> Tensor:
    """Equations 18-19 in the dtype of log_score, clamped and normalised: (B, L, dim)."""
    graph, x_t, dtype = inputs.graph, inputs.x_t, inputs.log_score.dtype
    score = inputs.log_score.exp().scatter(-1, x_t[..., None], 1.0)
    if method == "euler":
        rate = _rates_in(x_t, graph, dtype) * score
        rate = rate.scatter(-1, x_t[..., None], -rate.sum(-1, keepdim=True))
        step = inputs.dsigma.to(dtype)[:, None, None]
        weights = F.one_hot(x_t, graph.dim).to(dtype) + step * rate
    else:
        noise = (inputs.sigma if method == "denoise" else inputs.dsigma).to(dtype)
        weights = _staggered(score, noise, graph) * _transposed_row(x_t, noise, graph)
        if method == "denoise" and graph.mask_index is not None:
            weights[..., graph.mask_index] = 0
    weights = weights.clamp(min=0)
    return weights / weights.sum(-1, keepdim=True)


def _staggered(score: Tensor, noise: Tensor, graph: sf.Graph) -> Tensor:
    """exp(-noise Q) score."""
    grow = torch.exp(noise)[:, None, None]
    total = score.sum(-1, keepdim=True)
    if graph.mask_index is None:
        return grow * score + (1 - grow) / graph.vocab_size * total
    staggered = grow * score
    staggered[..., graph.mask_index, None] += (1 - grow) * total
    return staggered


def _transposed_row(x_t: Tensor, noise: Tensor, graph: sf.Graph) -> Tensor:
    """exp(noise Q)[x_t, y] for every y: (B, L, dim)."""
    keep, lost = torch.exp(-noise)[:, None, None], -torch.expm1(-noise)[:, None, None]
    row = keep * F.one_hot(x_t, graph.dim).to(noise.dtype)
    if graph.mask_index is None:
        return row + lost / graph.vocab_size
    return row + lost * (x_t == graph.mask_index)[..., None]


def worst(error: Tensor) -> float:
    """The largest absolute error; NaN counts as infinite."""
    return float(error.double().abs().nan_to_num(nan=torch.inf).amax()) if error.numel() else 0.0


def assert_near(ours: Tensor, truth: Tensor, size: Tensor | float, tolerance: float) -> None:
    """|ours - truth| <= tolerance * size, element by element; infinite only where the truth is."""
    error = (ours.double() - truth).abs()
    error = torch.where(ours == truth.to(ours.dtype), 0, error)  # both may be infinite
    bad = ~(error <= tolerance * torch.as_tensor(size).double())
    if bool(bad.any()):
        at = tuple(int(i) for i in bad.nonzero()[0])
        raise AssertionError(
            f"{int(bad.sum())} of {bad.numel()} off; first at {at}: "
            f"{float(ours[at])!r}, truth {float(truth[at])!r}"
        )


def assert_inverse_cdf(
    tokens: Tensor, inputs: Inputs, method: str, slack: float = 1e-5, **token_filter: float
) -> None:
    """Every token is the one that u picks in the float64 distribution, up to ``slack`` in u.

    The token moves exactly if u0 is below the probability of moving; u1 lies in the interval of the
    token among the states != x_t, in natural order; a state of zero weight is never drawn.
    """
    moves, u = _reference_moves(inputs, method, **token_filter), inputs.u
    weights, stay = moves
    moving = weights.sum(-1)
    stays = tokens == inputs.x_t
    p_move = moving / (moving + stay)
    assert bool((u[..., 0] >= p_move - slack)[stays].all()), "a token stayed that had to move"
    assert bool((u[..., 0] <= p_move + slack)[~stays].all()), "a token moved that had to stay"
    upper = weights.cumsum(-1).gather(-1, tokens[..., None]).squeeze(-1)
    own = weights.gather(-1, tokens[..., None]).squeeze(-1)
    u1 = u[..., 1] * moving
    inside = (own > 0) & (u1 >= upper - own - slack * moving) & (u1 <= upper + slack * moving)
    assert bool(inside[~stays].all()), "a token outside its interval of the inverse CDF"


def _reference_moves(inputs: Inputs, method: str, **token_filter: float) -> tuple[Tensor, Tensor]:
    noise, graph = (inputs.sigma, inputs.dsigma), inputs.graph
    reverse = ReverseInputs(inputs.x_t, *noise, None, *process(graph), method, **token_filter)
    return reference.reverse_weights(inputs.log_score.detach().double(), reverse)


def chi_square_tail(statistic: float, degrees: int) -> float:
    """The probability that chi-square is larger."""
    halves = torch.tensor([degrees, statistic], dtype=torch.float64) / 2
    return float(torch.special.gammaincc(*halves))


def assert_distribution(tokens: Tensor, probs: Tensor) -> None:
    """Pearson's test; states expected less than 5 times are counted as one.

    It fails by chance once in a million.
    """
    counts = torch.bincount(tokens.flatten().cpu(), minlength=len(probs)).double()
    expected = probs.double().cpu() * counts.sum()
    assert not counts[expected == 0].any(), "a state of zero weight was drawn"
    rare = expected < 5
    counts, expected = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (counts, expected))
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic = float(((counts - expected) ** 2 / expected).sum())
    p_value = chi_square_tail(statistic, max(len(counts) - 1, 1))
    assert p_value > 1e-6, f"chi-square {statistic:.1f} over {len(counts)} states"


def loss_and_gradient(inputs: Inputs, upstream: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """score_entropy under autograd, with any upstream gradient (ones if None)."""
    leaf = inputs.log_score.detach().requires_grad_()
    loss = sf.score_entropy(leaf, *inputs.entropy()[1:])
    loss.backward(torch.ones_like(loss) if upstream is None else upstream)
    assert leaf.grad is not None
    return loss.detach(), leaf.grad
