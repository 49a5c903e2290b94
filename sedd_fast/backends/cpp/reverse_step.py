"""reverse_step and reverse_probs in C++."""

import torch
from torch import Tensor

from sedd_fast.backends import values
from sedd_fast.backends.compiled import METHODS, process_codes
from sedd_fast.backends.cpp.module import kernels, reals, scores
from sedd_fast.backends.dtypes import fp32_or_fp64
from sedd_fast.backends.inputs import ReverseInputs


@values.checked_by_kernel
def reverse_step(log_score: Tensor, reverse: ReverseInputs) -> Tensor:
    """x_s (B, L): one read of every row that may move, and one chunk of it again."""
    reverse = reverse.contiguous(keep_fp32=True)
    assert reverse.u is not None
    x_s = torch.empty_like(reverse.x_t)
    addresses = reverse.u.data_ptr(), x_s.data_ptr()
    run = kernels().reverse_step
    _check(run(_inputs(log_score, reverse), *addresses, torch.get_num_threads()), reverse)
    return x_s


@values.checked_by_kernel
def reverse_probs(log_score: Tensor, reverse: ReverseInputs) -> Tensor:
    """(B, L, dim): the distribution of :func:`reverse_step`."""
    reverse = reverse.contiguous(keep_fp32=True)
    probs = torch.empty(log_score.shape, dtype=fp32_or_fp64(log_score.dtype))
    inputs = _inputs(log_score, reverse)
    _check(kernels().reverse_probs(inputs, probs.data_ptr(), torch.get_num_threads()), reverse)
    return probs


def _inputs(log_score: Tensor, reverse: ReverseInputs) -> object:
    """Addresses; ``reverse`` is contiguous, and its owner keeps it."""
    tensors = reverse.x_t.data_ptr(), reals(reverse.sigma), reals(reverse.dsigma)
    process = *process_codes(reverse), METHODS[reverse.method]
    shares = reverse.inverse_temperature, reverse.top_p
    return kernels().ReverseInputs(
        scores(log_score), *tensors, *process, reverse.scale_by_sigma, *shares
    )


def _check(outcome: tuple[bool, int], reverse: ReverseInputs) -> None:
    """Word the error where a value was out of range or a row gave no distribution."""
    valid, undrawable = outcome
    if not valid:
        values.check(reverse)
    if undrawable >= 0:
        raise values.UndrawableError(divmod(undrawable, reverse.x_t.shape[1]))
