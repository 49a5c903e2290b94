"""Training objectives: score entropy, and those of neighbouring papers, called the same way.

For one sequence, E = expm1(sigma(t)), scores s = exp(l), S their sum over y != x_t, ratios
r_y = p(y | x_0) / p(x_t | x_0), w_y the rates of jumps (1 from the mask, 1/V uniformly):

    MaskedCrossEntropy      sigma'(t) / E * sum over masked positions of [ln S - l_{x_0}]
      over="lambda"         the same, drawn over the mask probability: 1/lambda for sigma'(t) / E
    D3PMLoss                T * KL(q(x_s | x_t, x_0), p(x_s | x_t)), p that of an analytic step
    ConcreteScoreMatching   sigma'(t) / 2 * sum over y != x_t of w_y (s_y - r_y)^2

in nats (concrete score matching has no unit), summed over positions. Only the rows of noised
positions are read. ``posterior_cross_entropy`` is the cross entropy of every position. They take a
score network; a network of p(x_0 | x_t) is wrapped in a :class:`sedd_fast.PosteriorModel`, or is a
:class:`sedd_fast.PosteriorSEDD`.
``DenseScoreEntropyLoss`` is score entropy on any rate matrix, in plain torch. docs/losses.md has
the table of papers and names.
"""

from sedd_fast.losses.concrete_score import ConcreteScoreMatching
from sedd_fast.losses.d3pm import D3PMLoss
from sedd_fast.losses.dense_score_entropy import DenseScoreEntropyLoss
from sedd_fast.losses.masked_cross_entropy import MaskedCrossEntropy, posterior_cross_entropy
from sedd_fast.losses.next_token import NextTokenLoss
from sedd_fast.losses.objective import Objective, stratified_times
from sedd_fast.losses.score_entropy import ScoreEntropyLoss

__all__ = [
    "ConcreteScoreMatching",
    "D3PMLoss",
    "DenseScoreEntropyLoss",
    "MaskedCrossEntropy",
    "NextTokenLoss",
    "Objective",
    "ScoreEntropyLoss",
    "posterior_cross_entropy",
    "stratified_times",
]
