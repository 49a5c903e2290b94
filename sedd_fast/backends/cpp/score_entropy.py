"""score_entropy, its gradient, and both in one pass, in C++."""

import torch
from torch import Tensor

from sedd_fast.backends import values
from sedd_fast.backends.compiled import process_codes
from sedd_fast.backends.cpp.module import kernels, reals, scores
from sedd_fast.backends.dtypes import at_least_fp32, fp32_or_fp64, gradient_dtype
from sedd_fast.backends.inputs import EntropyInputs


@values.checked_by_kernel
def score_entropy(log_score: Tensor, entropy: EntropyInputs) -> Tensor:
    """(B, L) losses: one read of the touched rows."""
    entropy = entropy.contiguous(keep_fp32=True)
    loss = torch.empty(log_score.shape[:2], dtype=fp32_or_fp64(log_score.dtype))
    run = kernels().score_entropy
    if not run(_inputs(log_score, entropy), reals(loss), torch.get_num_threads()):
        values.check(entropy)
    return loss


def score_entropy_backward(grad_loss: Tensor, log_score: Tensor, entropy: EntropyInputs) -> Tensor:
    """(B, L, dim) gradient: one read of the touched rows, one write."""
    entropy = entropy.contiguous(keep_fp32=True)
    upstream = at_least_fp32(grad_loss).contiguous()
    grad = torch.empty(log_score.shape, dtype=log_score.dtype)
    inputs, addresses = _inputs(log_score, entropy), (reals(upstream), grad.data_ptr())
    kernels().score_entropy_backward(inputs, *addresses, torch.get_num_threads())
    return grad


@values.checked_by_kernel
def score_entropy_with_grad(
    log_score: Tensor, entropy: EntropyInputs, scale: float
) -> tuple[Tensor, Tensor]:
    """Losses and gradient of ``scale * loss.sum()``: one read, one write."""
    entropy = entropy.contiguous(keep_fp32=True)
    loss = torch.empty(log_score.shape[:2], dtype=fp32_or_fp64(log_score.dtype))
    grad = torch.empty(log_score.shape, dtype=gradient_dtype(log_score.dtype))
    inputs, run = _inputs(log_score, entropy), kernels().score_entropy_with_grad
    if not run(inputs, scale, reals(loss), grad.data_ptr(), torch.get_num_threads()):
        values.check(entropy)
    return loss, grad


def _inputs(log_score: Tensor, entropy: EntropyInputs) -> object:
    """Addresses; ``entropy`` is contiguous, and its owner keeps it."""
    return kernels().EntropyInputs(
        scores(log_score), reals(entropy.sigma), entropy.x_t.data_ptr(), entropy.x_0.data_ptr(),
        reals(entropy.row_weight), *process_codes(entropy),
    )  # fmt: skip
