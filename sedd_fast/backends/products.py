"""Matrix products: their dtype on a CPU, their sizes on a GPU, and sums of several in float32."""

import functools

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

#: States of a product are made a multiple of so many: cuBLAS forms products of an odd number with
#: old kernels, up to seven times more slowly (H200, CUDA 13.0).
EVEN = 64


def accumulate(out: Tensor, a: Tensor, b: Tensor, again: bool) -> None:
    """out = a @ b, added to what is in ``out`` if ``again``.

    ``out`` may be float32 where a and b are half: what the product adds up in float32 then stays so
    where the device's products can do that. Elsewhere each is rounded to the dtype of a and b.
    """
    if out.dtype != a.dtype and not adds_in_float32(out.device):
        product = a @ b
        if again:
            out += product
        else:
            out.copy_(product)
    elif out.dtype != a.dtype:
        torch.addmm(out, a, b, out_dtype=out.dtype, beta=int(again), out=out)
    else:
        torch.addmm(out, a, b, beta=int(again), out=out)


def evened(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(n', H), the weight (n, H) in that dtype with rows of 0 up to a multiple of EVEN.

    The kernel of a block writes whole tiles, so a gradient has finite numbers at states beyond n.
    """
    n, rest = len(weight), -len(weight) % EVEN
    if rest == 0:
        return weight.to(dtype)
    made = weight.new_empty(n + rest, weight.shape[1], dtype=dtype)
    made[:n] = weight
    made[n:] = 0
    return made


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of operands for products in ``dtype``: float32 on a CPU without products in half.

    torch forms those on any CPU, but up to 80 times more slowly than products in float32.
    """
    return dtype if device.type != "cpu" or _has_products(dtype) else torch.float32


@functools.cache
def _has_products(dtype: torch.dtype) -> bool:
    """Whether oneDNN has products of that dtype on this CPU, as torch tells."""
    name = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype)
    if name is None:
        return True
    supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", None)
    return supported is not None and bool(supported())


@functools.cache
def adds_in_float32(device: torch.device) -> bool:
    """Whether torch.addmm takes a float32 matrix to add half operands' product to.

    On CUDA alone; until torch 2.10 ``out_dtype`` was there, but the matrix had to be half.
    """
    recent = TorchVersion(torch.__version__) >= "2.10"
    return device.type == "cuda" and torch.version.hip is None and recent
