"""Where the operations' randomness comes from: two float64 uniforms a position.

u0 decides whether a token stays or moves, u1 where it goes. float64, because float32 uniforms
cannot hit a token of probability 1e-8 and are biased near 0 and 1.
"""

import torch
from torch import Tensor

from sedd_fast.ops._arguments import check_device, check_tensor


def uniform(
    shape: tuple[int, ...],
    device: torch.device | str,
    generator: torch.Generator | None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Uniforms in [0, 1) on that device; drawn on the generator's device, where there is one."""
    draw_on = device if generator is None else generator.device
    return torch.rand(shape, dtype=dtype, device=draw_on, generator=generator).to(device)


def uniforms(tokens: Tensor, u: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """``u`` itself when given (checked), else a fresh draw of shape (B, L, 2), float64.

    A CPU generator with CUDA tokens draws on the CPU and copies, so that one seed gives one text
    on every device.

    Raises:
        ValueError: both u and generator; u of another shape, dtype or device.
        RuntimeError: a generator under torch.compile (it cannot be traced), or a CPU generator
            during CUDA graph capture. The remedy for both is ``u=``.
    """
    shape = (*tokens.shape, 2)
    if u is not None:
        if generator is not None:
            raise ValueError("u and generator were both given; pass one of them")
        if check_tensor("u", u).dtype != torch.float64:
            raise TypeError(f"u must be float64, got {u.dtype}; draw it with dtype=torch.float64")
        if tuple(u.shape) != shape:
            raise ValueError(f"u must have shape {shape}, got {tuple(u.shape)}")
        check_device("u", u, tokens, "the tokens")
        return u
    if generator is None:
        return torch.rand(shape, dtype=torch.float64, device=tokens.device)
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "a torch.Generator cannot be traced by torch.compile; draw "
            "u = torch.rand(B, L, 2, dtype=torch.float64, generator=...) outside and pass u="
        )
    on_cpu = generator.device.type == "cpu"
    if on_cpu and tokens.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a CPU generator cannot be used while a CUDA graph is captured; pass u= or a CUDA "
            "generator registered with the graph"
        )
    return uniform(shape, tokens.device, generator)
