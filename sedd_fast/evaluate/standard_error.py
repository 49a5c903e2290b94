"""Standard errors that cover: from few draws, of strata that differ, and of their sums.

A variance estimated from d degrees of freedom may be far too small by chance. So an error here is

    stderr = sqrt(variance) * t(d) / 1.96

where t(d) is Student's 97.5 % quantile: estimate +- 1.96 stderr is the 95 % interval of Student's
t distribution, as it is for a known variance. With many degrees of freedom the factor is 1.

A variance that is a sum of estimates v_k with d_k degrees of freedom has about (Satterthwaite
1946, without the bias of the v_k^2)

    d = (sum of v_k)^2 / (sum of v_k^2 / (d_k + 2)) - 2

so that few terms which dominate the sum count as few.
"""

import torch
from torch import Tensor


def student_factor(degrees: Tensor) -> Tensor:
    """t(d) / 1.96, Student's 97.5 % quantile over the normal one, for d >= 1; within 0.3 %.

    The expansion of its logarithm in 1 / d, (1.96^2 + 1) / 4d, with a second term fitted.
    """
    return torch.exp((1.2104 + 0.8094 / (degrees + 0.2242)) / degrees)


def covering_error(variance: Tensor, degrees: Tensor) -> Tensor:
    """The standard error of estimates with these estimated variances and degrees of freedom."""
    return variance.sqrt() * student_factor(degrees)


def total(variances: Tensor, degrees: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of independent variances along the last dimension, and its degrees of freedom."""
    variance = variances.sum(-1)
    d = variance.square() / (variances.square() / (degrees + 2)).sum(-1) - 2
    # Infinitely many where no term has an error.
    return variance, torch.where(variance == 0, torch.inf, d.clamp(min=1))
