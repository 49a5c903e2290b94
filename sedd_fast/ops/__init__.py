"""The operations, one file each: public function, validation, torch.library op, fake, autograd.

They are opaque to torch.compile and torch.export (one node each), and choose their backend when
they run. They know a graph by its kind and size only.
"""

from sedd_fast.ops.linear_cross_entropy import linear_cross_entropy
from sedd_fast.ops.linear_denoise import Denoised, linear_denoise
from sedd_fast.ops.linear_reverse_step import linear_reverse_step
from sedd_fast.ops.linear_score_entropy import linear_score_entropy
from sedd_fast.ops.reverse_step import reverse_probs, reverse_step
from sedd_fast.ops.row_sums import row_sums
from sedd_fast.ops.sample_transition import sample_transition
from sedd_fast.ops.score_entropy import score_entropy, score_entropy_with_grad
from sedd_fast.ops.touched_rows import TouchedRows, touched_rows

__all__ = [
    "Denoised",
    "TouchedRows",
    "linear_cross_entropy",
    "linear_denoise",
    "linear_reverse_step",
    "linear_score_entropy",
    "reverse_probs",
    "reverse_step",
    "row_sums",
    "sample_transition",
    "score_entropy",
    "score_entropy_with_grad",
    "touched_rows",
]
