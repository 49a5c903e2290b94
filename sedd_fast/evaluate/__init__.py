"""Evaluation: likelihood bounds, and measures of samples.

result      LikelihoodBound: nats with standard errors
bound       likelihood_bound of a batch, evaluate_corpus of a text: formulas and modes
estimators  the terms of the bounds; draws: the Monte Carlo sampling under them
levels      the noise levels that are drawn; standard_error: errors of estimates and of their sums
likelihood  exact_likelihood of the autoregressive baseline
wrapping    a text or a data set as blocks of tokens, wrapped as the zero-shot tables do
generative  generative perplexity of samples under a judge; mauve, diversity, ngram
tradeoff    quality of samples against compute; plots has its pictures
"""

from sedd_fast.evaluate.bound import evaluate_corpus, likelihood_bound
from sedd_fast.evaluate.estimators import limit_divergence
from sedd_fast.evaluate.result import LikelihoodBound, join
from sedd_fast.names import MODES, TIMES

__all__ = [
    "MODES",
    "TIMES",
    "LikelihoodBound",
    "evaluate_corpus",
    "join",
    "likelihood_bound",
    "limit_divergence",
]
