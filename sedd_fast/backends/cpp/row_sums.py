"""row_sums and its gradient in C++."""

import torch
from torch import Tensor

from sedd_fast.backends import values
from sedd_fast.backends.compiled import TERMS, address, process_codes
from sedd_fast.backends.cpp.module import kernels, scores
from sedd_fast.backends.inputs import RowSumInputs


@values.checked_by_kernel
def row_sums(log_score: Tensor, sums: RowSumInputs) -> tuple[Tensor, Tensor]:
    """Sums and l at x_0, (B, L) float64: one read of the rows in which a is not 0."""
    sums = sums.contiguous()
    total, log_x_0 = torch.empty_like(sums.a), torch.empty_like(sums.a)
    inputs, run = _inputs(log_score, sums), kernels().row_sums
    if not run(inputs, total.data_ptr(), log_x_0.data_ptr(), torch.get_num_threads()):
        values.check(sums)
    return total, log_x_0


def row_sums_backward(
    grad_total: Tensor, grad_log_x_0: Tensor, log_score: Tensor, sums: RowSumInputs
) -> tuple[Tensor, Tensor]:
    """Gradients in log_score and b: one read of the touched rows, one write."""
    sums = sums.contiguous()
    upstream = [grad.to(torch.float64).contiguous() for grad in (grad_total, grad_log_x_0)]
    grad, grad_b = torch.empty(log_score.shape, dtype=log_score.dtype), torch.empty_like(sums.a)
    addresses = map(address, (*upstream, grad, grad_b))
    kernels().row_sums_backward(_inputs(log_score, sums), *addresses, torch.get_num_threads())
    return grad, grad_b


def _inputs(log_score: Tensor, sums: RowSumInputs) -> object:
    """Addresses; ``sums`` is contiguous, and its owner keeps it."""
    addresses = map(address, (sums.x_t, sums.x_0, sums.a, sums.b))
    process = process_codes(sums)
    return kernels().RowSumsInputs(scores(log_score), *addresses, TERMS[sums.term], *process)
