"""The operations as Triton kernels (``sedd_fast.kernels``), for CUDA and ROCm.

This module owns what the kernels cannot see: contiguity of the small tensors, the device guard,
the layout of the gradient. Nothing here waits for the GPU.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

from sedd_fast.backends import reference, values
from sedd_fast.backends.gpu import MOST_POSITIONS, launching, too_large
from sedd_fast.backends.inputs import Entropy, Noising, Reverse
from sedd_fast.backends.triton.linear_reverse_step import linear_reverse_step
from sedd_fast.backends.triton.linear_score_entropy import (
    linear_score_entropy,
    linear_score_entropy_with_grad,
)
from sedd_fast.backends.triton.row_sums import row_sums, row_sums_backward

__all__ = [
    "DTYPES",
    "devices",
    "interpreted",
    "linear_reverse_step",
    "linear_score_entropy",
    "linear_score_entropy_with_grad",
    "reverse_step",
    "row_sums",
    "row_sums_backward",
    "sample_transition",
    "score_entropy",
    "score_entropy_backward",
    "score_entropy_with_grad",
    "unavailable",
    "unsupported",
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: What runs one program a position.
ROW_OPS = ("score_entropy", "score_entropy_with_grad", "reverse_step", "row_sums")
#: Of reverse_step, whose programs keep the sums of a row's blocks in registers: at this size they
#: spill a little (sm_90); at four times as many a compilation takes 10 to 30 seconds.
MOST_STATES_OF_A_STEP = 2**20


#: A law for study needs no kernel of its own.
reverse_probs = reference.reverse_probs


def devices() -> tuple[str, ...]:
    """The kinds of device it runs on; the interpreter takes CPU tensors."""
    return ("cuda", "cpu") if interpreted() else ("cuda",)


@functools.cache
def unavailable() -> str | None:
    """Why this backend cannot be used, or None."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; run `pip install triton` (Linux)"
    return None


def unsupported(op: str, like: Tensor) -> str | None:
    """Why the operation cannot run on log scores, or tokens to be noised, of that size, or None."""
    if op == "sample_transition" and like.numel() > MOST_POSITIONS:
        return _too_many_programs(like)
    if op not in ROW_OPS:
        return None
    if op != "reverse_step":
        return too_large(op, like)
    return too_large(op, like, MOST_STATES_OF_A_STEP, "it keeps their sums in registers")


def _too_many_programs(x_0: Tensor) -> str | None:
    from sedd_fast.kernels.sample_transition import programs

    if (number := programs(*x_0.shape)) <= MOST_POSITIONS:
        return None
    return (
        f"its sample_transition takes at most {MOST_POSITIONS:,} programs in a call, got "
        f"{number:,}; split the batch"
    )


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def sample_transition(noising: Noising) -> Tensor:
    """x_t ~ p(. | x_0)."""
    from sedd_fast.kernels import sample_transition as kernel

    values.check(noising)
    noising = noising.contiguous(keep_fp32=True)
    x_0, x_t = noising.x_0, torch.empty_like(noising.x_0)
    with _launching("sample_transition", x_0):
        kernel.launch(x_0, noising.sigma, noising.u, x_t, noising.graph, noising.vocab_size)
    return x_t


def score_entropy(log_score: Tensor, entropy: Entropy) -> Tensor:
    """(B, L) float32 losses: one read of the touched rows."""
    loss = _empty(entropy.x_t, torch.float32)
    _entropy(log_score, entropy, None, loss, None, 1.0)
    return loss


def score_entropy_backward(grad_loss: Tensor, log_score: Tensor, entropy: Entropy) -> Tensor:
    """(B, L, dim) gradient: one read of the touched rows, one write."""
    grad = _empty(log_score, log_score.dtype)
    _entropy(log_score, entropy, grad_loss.contiguous(), None, grad, 1.0)
    return grad


def score_entropy_with_grad(
    log_score: Tensor, entropy: Entropy, scale: float
) -> tuple[Tensor, Tensor]:
    """Losses and gradient of ``scale * loss.sum()``: one read, one write."""
    loss = _empty(entropy.x_t, torch.float32)
    grad = _empty(log_score, values.gradient_dtype(log_score.dtype))
    _entropy(log_score, entropy, None, loss, grad, scale)
    return loss, grad


def _entropy(
    log_score: Tensor,
    entropy: Entropy,
    upstream: Tensor | None,
    loss: Tensor | None,
    grad: Tensor | None,
    scale: float,
) -> None:
    from sedd_fast.kernels import score_entropy as kernel
    from sedd_fast.kernels.batches import EntropyBatch

    values.check(entropy)
    entropy = entropy.contiguous(keep_fp32=True)
    small = (entropy.sigma, entropy.x_t, entropy.x_0, entropy.row_weight)
    batch = EntropyBatch(*small, entropy.graph, entropy.vocab_size)
    with _launching("score_entropy", log_score):
        kernel.launch(log_score, batch, upstream, loss, grad, scale)


def reverse_step(log_score: Tensor, reverse: Reverse) -> Tensor:
    """x_s (B, L): one read of every row that may move, and one chunk of it again."""
    from sedd_fast.kernels import reverse_step as kernel
    from sedd_fast.kernels.batches import ReverseBatch

    values.check(reverse)
    reverse = reverse.contiguous(keep_fp32=True)
    assert reverse.u is not None
    x_s = _empty(reverse.x_t, reverse.x_t.dtype)
    small = (reverse.x_t, reverse.sigma, reverse.dsigma, reverse.u)
    process = (reverse.graph, reverse.vocab_size, reverse.method, reverse.scale_by_sigma)
    batch = ReverseBatch(*small, *process, reverse.inverse_temperature, reverse.top_p)
    with _launching("reverse_step", log_score):
        kernel.launch(log_score, batch, x_s)
    return x_s


def _empty(like: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous tensor of that shape and device."""
    return torch.empty_like(like, dtype=dtype, memory_format=torch.contiguous_format)


def _launching(op: str, tensor: Tensor) -> launching:
    """The device guard; what Triton says of a kernel that does not compile or fit names the op."""
    import triton

    return launching(op, tensor, triton.TritonError)
