"""Muon: steepest descent on matrices in the spectral norm, with momentum.

    B <- momentum * B + G
    W <- W - lr * sqrt(max(1, rows / columns)) * orthogonalised(G + momentum * B)

where orthogonalised(M), for M = U S V^T, is nearly U V^T: every direction of the update has the
same size. It is for the matrices inside the blocks of a network. Embeddings, the output head, gains
and biases keep AdamW.

`torch.optim.Muon` (torch 2.9) is the same method, but it orthogonalises in bfloat16, one matrix at
a time: on a CPU without bfloat16 instructions that takes several times as long as the gradient.
Here a CPU uses float32, and matrices of one shape are orthogonalised together.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

#: Of x -> a x + b x^3 + c x^5, which in five steps takes (0.003, 1] to about (0.7, 1.2).
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay; for float parameters (M, N).

    Args:
        params: matrices.
        lr: spectral norm of an update, at most about 1.2 times it for M <= N.
        momentum: decay of the sum of gradients.
        weight_decay: W <- (1 - lr * weight_decay) W before each update.

    Raises:
        ValueError: a parameter that is not a matrix.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.ndim != 2:
                raise ValueError(
                    f"Muon is for matrices, got a parameter of shape {tuple(p.shape)}; give the "
                    "other parameters to AdamW"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            of_shape: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    of_shape[p.shape].append(p)
            for matrices in of_shape.values():
                self._update(matrices, **{k: v for k, v in group.items() if k in self.defaults})
        return loss

    def _update(
        self, matrices: list[Tensor], lr: float, momentum: float, weight_decay: float
    ) -> None:
        """Update matrices (M, N) of one shape."""
        directions = []
        for p in matrices:
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
            grad: Tensor = p.grad  # type: ignore[assignment]
            velocity = state["momentum_buffer"].mul_(momentum).add_(grad)
            directions.append(torch.add(grad, velocity, alpha=momentum))
        rows, columns = matrices[0].shape
        updates = orthogonalised(torch.stack(directions))
        for p, update in zip(matrices, updates, strict=True):
            p.mul_(1 - lr * weight_decay)
            p.add_(update, alpha=-lr * math.sqrt(max(1, rows / columns)))


def orthogonalised(matrices: Tensor) -> Tensor:
    """(K, M, N) with singular values of about 1 (0.7 to 1.2), and the same singular vectors.

    Five iterations of Newton-Schulz type, in float32 on a CPU and in bfloat16 elsewhere. Singular
    values below about 0.003 of the norm of a matrix stay smaller. A matrix of zeros stays zero.
    """
    x = matrices.to(torch.float32 if matrices.device.type == "cpu" else torch.bfloat16)
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x  # the product x x^T is then the smaller one
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return (x.mT if is_tall else x).to(matrices.dtype)
