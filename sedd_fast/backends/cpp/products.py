"""Linear heads whose products are formed in C++ (csrc/cpu/head_products.cpp)."""

from typing import Any

import torch
from torch import Tensor

from sedd_fast.backends.compiled import DTYPES
from sedd_fast.backends.cpp.module import kernels
from sedd_fast.backends.head import Linear


class CppHead:
    """A head as C++ takes it: f = hidden @ weight.T + bias, softcapped, in float32 or float64.

    Attributes:
        threads: how many.
        block: states of a block.
        panel: of how many rows or more the products have a multiple.
    """

    def __init__(self, linear: Linear, bias: Tensor, softcap: float) -> None:
        self.linear, self.bias, self.softcap = linear, bias, softcap
        self.threads = torch.get_num_threads()
        none = self.of(linear.hidden.new_empty(1, linear.weight.shape[1], dtype=linear.dtype))
        self.block, self.panel = none.block, none.padded_rows

    def of(self, hidden: Tensor) -> Any:
        """A LinearHead of csrc/cpu/operations.h: the head for hidden states (R, H), contiguous."""
        weight = self.linear.weight
        return kernels().LinearHead(
            weight.data_ptr(), DTYPES[weight.dtype], *weight.shape, *weight.stride(),
            self.bias.data_ptr(), hidden.data_ptr(), len(hidden), DTYPES[hidden.dtype],
            self.softcap, self.threads,
        )  # fmt: skip
