"""Fused linear cross-entropies of other packages on the same rows: another loss of the same size.

They are a yardstick: a cross-entropy needs the logarithm of its sum before its gradient, and score
entropy does not, so the latter should not be slower. Liger Kernel, cut-cross-entropy and QuACK take
part on a GPU, where they can be imported.
"""

from collections.abc import Callable
from importlib.util import find_spec

import torch.nn.functional as F
from torch import Tensor, autograd, nn

from benchmarks.harness.cases import Contender

#: The module of a package -> the name to install it by.
OPTIONAL = {
    "liger_kernel": "liger-kernel",
    "cut_cross_entropy": "cut-cross-entropy",
    "quack": "quack-kernels",
}

Loss = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]


def missing(device: str) -> list[str]:
    """A line for each package that could run on the device but is not installed."""
    if device != "cuda":
        return []
    return [
        f"{package} is left out, it is not installed: pip install {package}"
        for module, package in OPTIONAL.items()
        if find_spec(module) is None
    ]


def contenders(
    hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor
) -> tuple[Contender, ...]:
    """Mean cross-entropy of target (R,) with gradients of hidden (R, H), weight and bias."""
    found: list[tuple[str, Loss]] = []
    if hasattr(nn, "LinearCrossEntropyOptions"):  # torch 2.13
        found.append(("torch linear_cross_entropy", by_torch))
    if hidden.is_cuda and find_spec("liger_kernel"):
        found.append(("Liger fused linear cross-entropy", by_liger))
    if hidden.is_cuda and find_spec("cut_cross_entropy"):
        found.append(("cut-cross-entropy, no bias, all gradients", by_cut))
    if hidden.is_cuda and find_spec("quack"):
        found.append(("QuACK chunked linear cross-entropy, no bias", by_quack))
    # QuACK's matrix products need multiples of 8.
    rounded = weight.detach()[: len(weight) // 8 * 8].requires_grad_()

    def run(loss: Loss) -> Callable[[], object]:
        if loss is by_quack:
            rows, labels = hidden, target.clamp(max=len(rounded) - 1)
            return lambda: autograd.grad(loss(rows, rounded, None, labels), (rows, rounded))
        leaves = (hidden, weight) if loss is by_cut else (hidden, weight, bias)
        return lambda: autograd.grad(loss(hidden, weight, bias, target), leaves)

    return tuple(Contender(name, "yardstick", run(loss)) for name, loss in found)


def by_torch(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """torch's own function."""
    options = nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, weight, target, linear_bias=bias, options=options)


def by_liger(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """Liger Kernel's function, which computes gradients in the forward pass."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(hidden, weight, target, bias)


def by_cut(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """Apple's function; ``filter_eps=None`` keeps small gradients. Its release has no bias."""
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(hidden, weight, target, filter_eps=None)


def by_quack(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """QuACK's function in one chunk. It has no bias and needs a number of rows divisible by 8."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return chunked_linear_cross_entropy(hidden, weight, target)
