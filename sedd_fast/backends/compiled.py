"""What Python and the compiled modules agree on: numbers for names, and addresses of tensors."""

import torch
from torch import Tensor

from sedd_fast.backends.inputs import OpInputs

#: The codes of csrc/common/dtype.h and process.h.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
GRAPHS = {"absorbing": 0, "uniform": 1}
METHODS = {"analytic": 0, "euler": 1, "denoise": 2}
TERMS = {"affine": 0, "square": 1, "log": 2}


def process_codes(inputs: OpInputs) -> tuple[int, int, int]:
    """Graph, number of tokens and mask of an operation's inputs: the ``Process`` of C++."""
    return GRAPHS[inputs.graph], inputs.vocab_size, inputs.mask_index


def address(tensor: Tensor | None) -> int:
    """Of a tensor's memory; 0, a null pointer, for None."""
    return 0 if tensor is None else tensor.data_ptr()
