"""What Python and the compiled modules agree on: numbers for names, and addresses of tensors."""

import torch
from torch import Tensor

#: The codes of csrc/common/process.h and coefficients.h.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
GRAPHS = {"absorbing": 0, "uniform": 1}
METHODS = {"analytic": 0, "euler": 1, "denoise": 2}
TERMS = {"affine": 0, "square": 1, "log": 2}


def address(tensor: Tensor | None) -> int:
    """Of a tensor's memory; 0, a null pointer, for None."""
    return 0 if tensor is None else tensor.data_ptr()
