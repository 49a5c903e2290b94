"""linear_denoise: what a denoising step asks of p(x_0 | x_t), straight from hidden states."""

from collections.abc import Sequence

from torch import Tensor

from sedd_fast.backends import registry, values
from sedd_fast.backends.head import Linear
from sedd_fast.backends.softmax import Denoised, DenoiseInputs, empty_results
from sedd_fast.names import WANTED, Wanted
from sedd_fast.ops import _arguments as arguments
from sedd_fast.ops import _linear
from sedd_fast.ops._operator import operator
from sedd_fast.ops._uniforms import Generator, uniforms
from sedd_fast.ops.touched_rows import TouchedRows


@operator("linear_denoise")
def linear_denoise_op(
    linear: Linear, inputs: DenoiseInputs
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    run = registry.function("linear_denoise", linear.hidden, "")
    if inputs.u is not None:
        values.check_uniforms(inputs.u)
    with _linear.no_autocast(linear.hidden.device):
        return run(linear.with_workspace(keeps=False), inputs)


linear_denoise_op.register_fake(empty_results)


def linear_denoise(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    u: Tensor | None = None,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    softcap: float | None = None,
    excluded: int | Sequence[int] | None = None,
    want: Sequence[Wanted] = WANTED,
    generator: Generator | None = None,
    rows: TouchedRows | None = None,
    workspace: int | None = None,
) -> Denoised:
    """A draw from p = softmax(hidden @ weight.T + bias) and statistics of p, without the logits.

    One product of all rows gives what samplers by confidence, entropy or margin need (LLaDA,
    MaskGIT, Dream), and only what is wanted is computed. The draw is an inverse CDF in the natural
    order of states: same ``u``, same token on every backend. A top-p below 1 forms rows once more,
    whole, a few at a time; the embedding takes a second product. No derivative is recorded.

    Args:
        hidden: (B, L, H) or (N, H), what the head is applied to.
        weight: (states, H).
        bias: (states,) or None.
        u: (B, L, 2) or (N, 2) float64 in [0, 1) instead of a draw, as in :func:`reverse_step`:
            u[..., 1] draws the token, u[..., 0] is not read.
        temperature, top_p: of the draw; the statistics are those of p itself.
        softcap, excluded: as in :func:`linear_cross_entropy`.
        want: names of :class:`Denoised`.
        generator: source of the uniforms; torch's default one if None.
        rows: from :func:`touched_rows`: the only rows that are formed. Elsewhere states are -1,
            numbers NaN and embeddings 0.
        workspace: bytes of memory to work in; 256 MiB on a GPU, 32 MiB on a CPU.

    Returns:
        :class:`Denoised`; numbers are float32, float64 for float64 operands, embeddings have the
        dtype of ``hidden``.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or value, or (on the CPU) a row that
            gives no distribution; the message says which.

    Example:
        >>> out = sf.linear_denoise(
        ...     hidden, head.weight, head.bias, excluded=mask, want=("token", "log_prob")
        ... )
        >>> surest = out.log_prob.masked_fill(x_t != mask, -torch.inf).argmax(-1)

    Source: Chang et al. 2022 (arXiv 2202.04200); Nie et al. 2025 (arXiv 2502.09992), section 2.4;
    Ye et al. 2025 (arXiv 2508.15487).
    """
    wanted = _checked_wanted(want)
    temperature, top_p = arguments.check_shares(temperature, top_p)
    linear = _linear.checked_softmax(hidden, weight, bias, rows, workspace).detach()
    drawn = None
    if wanted & {"token", "log_prob"}:
        drawn = uniforms(hidden.detach()[..., 0], u, generator).view(*linear.hidden.shape[:2], 2)
    inputs = DenoiseInputs(
        drawn, temperature, top_p, _linear.checked_excluded(excluded, len(weight)),
        _linear.checked_softcap(softcap), bool(wanted & {"argmax", "max_log_prob", "margin"}),
        "entropy" in wanted, "embedding" in wanted,
    )  # fmt: skip
    made = linear_denoise_op(linear, inputs)
    shape = tuple(hidden.shape[:-1])
    found = {
        name: value.view(*shape, *value.shape[2:])
        for name, value in zip(Denoised._fields, made, strict=True)
        if name in wanted
    }
    return Denoised(**found)


def _checked_wanted(want: Sequence[Wanted]) -> set[str]:
    if isinstance(want, str) or not hasattr(want, "__iter__"):
        hint = f"; write ({want!r},)" * isinstance(want, str)
        raise TypeError(f"want must be a sequence of names, got {want!r}{hint}")
    for name in want:
        arguments.check_choice("want", name, WANTED)
    if not want:
        raise ValueError(f"want must name at least one of {', '.join(WANTED)}")
    return set(want)
