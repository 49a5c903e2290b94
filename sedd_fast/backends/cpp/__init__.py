"""The operations in C++ for the CPU: one pass over a row, on all cores (csrc/cpu).

The compiled module ``sedd_fast._cpu`` takes raw addresses. This package owns what it cannot see:
dtypes, contiguity of the small tensors, lifetimes (a tensor stays referenced until the call
returns), the number of threads, and the wording of errors.
"""

import functools

from sedd_fast.backends.compiled import DTYPES
from sedd_fast.backends.cpp.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_backward,
    linear_cross_entropy_with_grad,
)
from sedd_fast.backends.cpp.linear_denoise import linear_denoise
from sedd_fast.backends.cpp.linear_reverse_step import linear_reverse_step
from sedd_fast.backends.cpp.linear_score_entropy import (
    linear_score_entropy,
    linear_score_entropy_with_grad,
)
from sedd_fast.backends.cpp.module import kernels, openmp_address, pool
from sedd_fast.backends.cpp.reverse_step import reverse_probs, reverse_step
from sedd_fast.backends.cpp.row_sums import row_sums, row_sums_backward
from sedd_fast.backends.cpp.sample_transition import sample_transition
from sedd_fast.backends.cpp.score_entropy import (
    score_entropy,
    score_entropy_backward,
    score_entropy_with_grad,
)
from sedd_fast.backends.cpp.uniforms import fill_uniforms


def devices() -> tuple[str, ...]:
    """The kinds of device it runs on."""
    return ("cpu",)


@functools.cache
def unavailable() -> str | None:
    """Why this backend cannot be used, or None."""
    try:
        kernels()
    except ImportError as error:
        return (
            f"its compiled module is missing ({error}); install a C++17 compiler and run "
            "`pip install` again"
        )
    return None
