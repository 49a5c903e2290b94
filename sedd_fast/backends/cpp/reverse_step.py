"""reverse_step and its law in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from sedd_fast.backends import values
from sedd_fast.backends.cpp.module import GRAPHS, METHODS, kernels, scores
from sedd_fast.backends.inputs import Reverse


def reverse_step(log_score: Tensor, reverse: Reverse) -> Tensor:
    """x_s (B, L): one read of every row that may move, and one chunk of it again."""
    reverse = reverse.contiguous()
    assert reverse.u is not None
    x_s = torch.empty(reverse.x_t.shape, dtype=torch.int64)
    outcome = kernels().reverse_step(
        _inputs(log_score, reverse),
        reverse.u.data_ptr(),
        x_s.data_ptr(),
        torch.get_num_threads(),
    )
    _check(outcome, reverse)
    return x_s


def reverse_probs(log_score: Tensor, reverse: Reverse) -> Tensor:
    """(B, L, dim): the law of :func:`reverse_step`."""
    reverse = reverse.contiguous()
    dtype = torch.float64 if log_score.dtype == torch.float64 else torch.float32
    probs = torch.empty(log_score.shape, dtype=dtype)
    inputs = _inputs(log_score, reverse)
    _check(kernels().reverse_probs(inputs, probs.data_ptr(), torch.get_num_threads()), reverse)
    return probs


def _inputs(log_score: Tensor, reverse: Reverse) -> object:
    """Addresses; ``reverse`` is contiguous, and its owner keeps it."""
    return kernels().ReverseInputs(
        scores(log_score),
        reverse.x_t.data_ptr(),
        reverse.sigma.data_ptr(),
        reverse.dsigma.data_ptr(),
        GRAPHS[reverse.graph],
        reverse.vocab_size,
        METHODS[reverse.method],
        reverse.scale_by_sigma,
        reverse.inverse_temperature,
        reverse.top_p,
    )


def _check(outcome: tuple[bool, int], reverse: Reverse) -> None:
    """Word the error where a value was out of range or a row gave no law."""
    valid, undrawable = outcome
    if not valid:
        values.check(reverse)
    if undrawable >= 0:
        raise values.undrawable(divmod(undrawable, reverse.x_t.shape[1]))
