"""model.utils: a model as a function that sets its mode first."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from sedd_fast.backends.dtypes import at_least_fp32


def get_model_fn(model: nn.Module, train: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """``model_fn(x, sigma)``: the model's output, in training or evaluation mode."""

    def model_fn(x: Tensor, sigma: Tensor) -> Tensor:
        model.train(train)
        return model(x, sigma)

    return model_fn


@dataclass(frozen=True)
class ScoreFunction:
    """``score_fn(x (B, L), sigma)``: log scores (B, L, dim), exponentiated if ``sampling``.

    sigma is (B,) or (B, 1). Nothing is cast here: neither does the original, whose autocast
    encloses the definition of its score function and not the calls. ``SEDD`` casts for itself.
    """

    model: nn.Module
    train: bool
    sampling: bool

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        log_score = self.log_score(x, sigma)
        return at_least_fp32(log_score).exp() if self.sampling else log_score

    def log_score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Log scores in either case: what to draw and to train from."""
        return get_model_fn(self.model, self.train)(x, sigma.reshape(-1))


def get_score_fn(model: nn.Module, train: bool = False, sampling: bool = False) -> ScoreFunction:
    """The score function of a model: log scores for training, scores for sampling.

    Raises ValueError for both ``train`` and ``sampling``.
    """
    if train and sampling:
        raise ValueError("sampling needs evaluation mode; pass train=False with sampling=True")
    return ScoreFunction(model, train, sampling)
