"""What a denoising step asks of a row in plain torch: all outputs of the read rows at once."""

import torch
from torch import Tensor

from sedd_fast.backends import values
from sedd_fast.backends.categorical import inverse_cdf
from sedd_fast.backends.dtypes import fp32_or_fp64
from sedd_fast.backends.head import Linear
from sedd_fast.backends.reference.shares import reshaped
from sedd_fast.backends.softmax import Denoised, DenoiseInputs, new_results, outputs, store


def linear_denoise(linear: Linear, inputs: DenoiseInputs) -> tuple[Tensor, ...]:
    """The fields of ``Denoised`` in order, (B, L) each; those not wanted are empty."""
    rows = linear.listed()
    f = outputs(linear, rows, inputs).double()  # (R, dim)
    u = None if inputs.u is None else inputs.u.flatten(0, 1)[rows.clamp(min=0), 1]
    found = of_outputs(f, u, inputs)
    assert found.log_sum_exp is not None
    good = torch.isfinite(found.log_sum_exp) | (rows < 0)
    values.check_rows_drawable(good, rows, linear.hidden.shape[1])
    if inputs.embedding:
        weight = linear.weight.to(linear.dtype).to(fp32_or_fp64(linear.dtype))
        p = (f - found.log_sum_exp[:, None]).exp()
        found = found._replace(embedding=p.to(weight.dtype) @ weight)
    made = new_results(linear, inputs)
    store(made, found, rows)
    return made


def of_outputs(f: Tensor, u: Tensor | None, inputs: DenoiseInputs) -> Denoised:
    """What is wanted of outputs f (R, dim) float64, (R,) each, but the embedding.

    Args:
        u: (R,) float64, draws the tokens; None where none are wanted.
        inputs: the temperature, and what is wanted.
    """
    log_sum = f.logsumexp(-1)
    log_p = f - log_sum[:, None]
    p = log_p.exp()
    found = {"log_sum_exp": log_sum}
    if u is not None:
        # Scores may lie beyond the range of exp, shares may not.
        drawn_from = reshaped(log_p, inputs.temperature, inputs.top_p).exp()
        token = inverse_cdf(drawn_from.cumsum(-1), u)
        found["token"] = token.clamp(max=f.shape[-1] - 1)  # of a row of NaN it is beyond the last
        found["log_prob"] = log_p.gather(-1, found["token"][:, None]).squeeze(-1)
    if inputs.top:
        found["argmax"] = log_p.argmax(-1)
        found["max_log_prob"] = log_p.amax(-1)
        second = p.scatter(-1, found["argmax"][:, None], 0).amax(-1)
        found["margin"] = found["max_log_prob"].exp() - second
    if inputs.entropy:
        found["entropy"] = -torch.where(p > 0, p * log_p, 0).sum(-1)
    return Denoised(**found)
