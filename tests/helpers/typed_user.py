"""A user's script, for mypy --strict only: it is never run (tests/test_typing.py).

It uses every name of ``sedd_fast``, and passes every kind of model. An ignored error is one that
mypy must find: with --strict an ignore that is not needed is an error itself.
"""

from functools import partial

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import sedd_fast as sf


def function(tokens: Tensor, sigma: Tensor) -> Tensor:
    return torch.zeros(*tokens.shape, 6) + sigma[:, None, None]


def scaled(scale: float, tokens: Tensor, sigma: Tensor) -> Tensor:
    return scale * function(tokens, sigma)


class Module(nn.Module):
    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        return function(x, noise_level)


class Wrapper:
    """Not a module; its own names of the parameters, and one more."""

    def __init__(self, model: sf.ScoreModel) -> None:
        self.model = model

    def __call__(self, x: Tensor, s: Tensor, scale: float = 1.0) -> Tensor:
        return scale * self.model(x, s)


def one_argument(tokens: Tensor) -> Tensor:
    return tokens


graph, noise = sf.Absorbing(5), sf.LogLinearNoise(eps=1e-3)
assert_type(sf.Absorbing(5, mask_index=2).mask_index, int)
graphs: tuple[sf.Graph, ...] = (graph, sf.Uniform(5), sf.DenseGraph(torch.eye(5)))
noises: tuple[sf.Noise, ...] = (noise, sf.GeometricNoise(1e-4, 20.0))
config = sf.SEDDConfig(vocab_size=5, graph="absorbing", noise="loglinear")
sedd = sf.SEDD.from_pretrained("louaaron/sedd-small")
posterior = sf.PosteriorModel(Module(), graph)
x_0, t = torch.zeros(2, 8, dtype=torch.int64), torch.ones(2)
known, log_score = x_0 == 0, torch.zeros(2, 8, 6)
hidden, weight = torch.zeros(2, 8, 4), torch.zeros(6, 4)


def use(model: sf.ScoreModel) -> None:
    tokens = sf.sample(model, graph, noise, (2, 8), method="hit", remask=sf.Remask("cap"))
    assert_type(tokens, Tensor)
    assert_type(sf.infill(model, graph, noise, x_0, known, callback=print), Tensor)
    bound = sf.likelihood_bound(model, x_0, graph, noise, mode="paper", times="antithetic")
    assert_type(bound.bits_per_token, float)
    for objective in (
        sf.ScoreEntropyLoss(graph, noise, reduction="mean"),
        sf.MaskedCrossEntropy(graph, noise, "sum", over="lambda"),
        sf.ConcreteScoreMatching(graph, noise),
        sf.D3PMLoss(graph, noise),
    ):
        assert_type(objective(model, x_0), Tensor)
    assert_type(sf.DenseScoreEntropyLoss(sf.DenseGraph(torch.eye(5)), noise)(model, x_0), Tensor)


use(function)
use(partial(scaled, 2.0))
use(lambda x, s: function(x, s))
use(Module())
use(sedd)
use(sf.PosteriorSEDD(config))
use(posterior)
use(sf.CudaGraphNetwork(sedd))
use(Wrapper(sedd))
use(Wrapper(Wrapper(function)))
use(nn.DataParallel(sedd))
use(torch.compile(function))
use(one_argument)  # type: ignore[arg-type]
use("louaaron/sedd-small")  # type: ignore[arg-type]

assert_type(sedd(x_0, t), Tensor)
assert_type(sf.sample_transition(x_0, t, graph), Tensor)
assert_type(sf.touched_rows(x_0, graph).index, Tensor)
assert_type(sf.score_entropy(log_score, t, x_0, x_0, graph, reduction="sum"), Tensor)
assert_type(sf.score_entropy_with_grad(log_score, t, x_0, x_0, graph), tuple[Tensor, Tensor])
assert_type(sf.row_sums(log_score, x_0, x_0, graph, "affine"), tuple[Tensor, Tensor])
assert_type(sf.reverse_step(log_score, x_0, t, 0.1, graph, "euler"), Tensor)
assert_type(sf.reverse_probs(log_score, x_0, t, 0.1, graph), Tensor)
assert_type(sf.posterior_from_score(log_score, t, x_0, graph), Tensor)
assert_type(sf.score_from_posterior(log_score, t, x_0, graph), Tensor)
assert_type(sf.posterior_cross_entropy(log_score, x_0, x_0, graph), Tensor)
assert_type(sf.linear_score_entropy(hidden, weight, None, t, x_0, x_0, graph), Tensor)
assert_type(sf.linear_cross_entropy(hidden, weight, None, x_0, reduction="mean"), Tensor)
assert_type(sf.linear_denoise(hidden, weight, None, want=("token",)).token, Tensor | None)
assert_type(sf.linear_reverse_step(hidden, weight, None, x_0, t, 0.1, graph), Tensor)
sf.sample(function, graph, noise, (2, 8), method="ancestral")  # type: ignore[arg-type]
sf.score_entropy(log_score, t, x_0, x_0, graph, reduction="avg")  # type: ignore[arg-type]
sf.SEDDConfig(vocab_size=5, graph="absorb")  # type: ignore[arg-type]
sf.no_such_name  # type: ignore[attr-defined]  # noqa: B018

text = sf.load("runs/book", device="cpu")
assert_type(text, sf.TextModel)
assert_type(text.sample(2, method="euler"), list[str])
assert_type(text.infill("The [8] fox"), str)
assert_type(text.infill("The [8] fox", n=2), list[str])
print(text.bits_per_token("The fox").value, sf.train("book.txt", preset="tiny", minutes=1).export)

ema = sf.ExponentialMovingAverage(sedd.parameters(), 0.999)
ema.update(sedd.parameters())
with sf.use_backend("cpp"):
    assert_type(sf.reuse_memory(), bool)
with sf.use_backend("fortran"):  # type: ignore[arg-type]
    print(sf.info().as_dict(), sf.__version__)
