"""The operations in CUDA C++ (csrc/cuda), for NVIDIA GPUs: a block of threads a position.

The compiled module ``sedd_fast._cuda`` takes raw addresses and a stream. This module owns what it
cannot see: dtypes, contiguity of the small tensors, the device and its current stream. Nothing here
synchronises the device, so every operation can be captured in a CUDA graph. Memory is torch's, so
what a call frees is not reused before its stream is through with it.
"""

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from sedd_fast.backends import reference
from sedd_fast.backends.compiled import DTYPES, METHODS, address, process_codes
from sedd_fast.backends.dtypes import fp32_or_fp64, gradient_dtype
from sedd_fast.backends.gpu import MOST_STATES, on, too_large
from sedd_fast.backends.inputs import EntropyInputs, NoisingInputs, ReverseInputs

#: What runs one block a position; sample_transition takes any number of tokens.
ROW_OPS = ("score_entropy", "score_entropy_with_grad", "reverse_step")

#: Reference-only: its speed does not matter.
reverse_probs = reference.reverse_probs


def devices() -> tuple[str, ...]:
    """The kinds of device it runs on."""
    return ("cuda",)


@functools.cache
def unavailable() -> str | None:
    """Why this backend cannot be used, or None."""
    try:
        compiled = kernels()
    except ImportError as error:
        return (
            f"its compiled module is missing ({error}); install the CUDA toolkit (nvcc) and run "
            "`pip install` again"
        )
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    device = torch.cuda.current_device()
    if reason := compiled.unsupported(device):
        major, minor = torch.cuda.get_device_capability(device)
        return (
            f"its kernels do not run on {torch.cuda.get_device_name(device)} ({reason}); "
            f"run `pip install` again with SEDD_FAST_CUDA_ARCHS={major}{minor}"
        )
    return None


def unsupported(op: str, like: Tensor) -> str | None:
    """Why the operation cannot run on log scores of that size, or None."""
    if op not in ROW_OPS:
        return None
    if op != "reverse_step":
        return too_large(op, like)
    why = f"for {like.dtype} scores it keeps their sums in the shared memory of a block"
    return too_large(op, like, most_states(like.dtype, like.device.index or 0), why)


@functools.cache
def most_states(dtype: torch.dtype, device: int) -> int:
    """The most states of a reverse step on that device."""
    return kernels().most_states(DTYPES[dtype], device) or MOST_STATES


@functools.cache
def kernels() -> Any:
    """The compiled module."""
    return importlib.import_module("sedd_fast._cuda")


def sample_transition(noising: NoisingInputs) -> Tensor:
    """x_t ~ p(. | x_0)."""
    noising = noising.contiguous()
    x_t = torch.empty_like(noising.x_0)
    addresses = map(address, (noising.x_0, noising.sigma, noising.u, x_t))
    process = process_codes(noising)
    call = kernels().Transition(*addresses, *x_t.shape, *process)
    _launch(kernels().sample_transition, call, x_t)
    return x_t


def score_entropy(log_score: Tensor, entropy: EntropyInputs) -> Tensor:
    """(B, L) losses: one read of the touched rows."""
    loss = log_score.new_empty(log_score.shape[:2], dtype=fp32_or_fp64(log_score.dtype))
    _launch_entropy(log_score, entropy, loss, None)
    return loss


def score_entropy_backward(grad_loss: Tensor, log_score: Tensor, entropy: EntropyInputs) -> Tensor:
    """(B, L, dim) gradient: one read of the touched rows, one write."""
    grad = log_score.new_empty(log_score.shape)
    _launch_entropy(log_score, entropy, None, grad, upstream=grad_loss.double().contiguous())
    return grad


def score_entropy_with_grad(
    log_score: Tensor, entropy: EntropyInputs, scale: float
) -> tuple[Tensor, Tensor]:
    """Losses and gradient of ``scale * loss.sum()``: one read, one write."""
    loss = log_score.new_empty(log_score.shape[:2], dtype=fp32_or_fp64(log_score.dtype))
    grad = log_score.new_empty(log_score.shape, dtype=gradient_dtype(log_score.dtype))
    _launch_entropy(log_score, entropy, loss, grad, scale)
    return loss, grad


def _launch_entropy(
    log_score: Tensor,
    entropy: EntropyInputs,
    loss: Tensor | None,
    grad: Tensor | None,
    scale: float = 1.0,
    upstream: Tensor | None = None,
) -> None:
    """Fill the loss (B, L), and the gradient (B, L, dim) of ``(scale * upstream * loss).sum()``."""
    entropy = entropy.contiguous()
    tensors = (entropy.sigma, entropy.x_t, entropy.x_0, entropy.row_weight)
    process = process_codes(entropy)
    call = kernels().Entropy(_tensor(log_score), *map(address, tensors), *process)
    if loss is not None:
        call.set_loss(loss.data_ptr())
    if grad is not None:
        call.set_gradient(_tensor(grad), address(upstream), scale)
    _launch(kernels().score_entropy, call, log_score)


def reverse_step(log_score: Tensor, reverse: ReverseInputs) -> Tensor:
    """x_s (B, L): one read of every row that may move, and one chunk of it again."""
    reverse = reverse.contiguous()
    assert reverse.u is not None
    x_s = torch.empty_like(reverse.x_t)
    small = (reverse.x_t, reverse.sigma, reverse.dsigma, reverse.u, x_s)
    process = *process_codes(reverse), METHODS[reverse.method]
    shares = reverse.inverse_temperature, reverse.top_p
    call = kernels().Reverse(_tensor(log_score), *map(address, small), *process, *shares)
    _launch(kernels().reverse_step, call, log_score)
    return x_s


def _tensor(tensor: Tensor) -> object:
    return kernels().Tensor(
        tensor.data_ptr(), DTYPES[tensor.dtype], tuple(tensor.shape), tensor.stride()
    )


def _launch(kernel: object, call: object, like: Tensor) -> None:
    """Run a kernel on the device of a tensor, on torch's current stream there.

    Raises:
        RuntimeError: CUDA refused the launch; the message names the operation.
    """
    with on(like):
        stream = torch.cuda.current_stream(like.device).cuda_stream
        kernel(call, like.device.index, stream)  # type: ignore[operator]
