"""One fuzz case: an operation on random inputs, on a backend and on the float64 reference."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from fuzz.draws import DTYPES, Draws, TokenFilter
from torch import Tensor

import sedd_fast as sf
from helpers.op_cases import METHODS, TOLERANCE
from sedd_fast.backends import reference
from sedd_fast.backends.coefficients import head_coefficients
from sedd_fast.backends.dtypes import fp32_or_fp64
from sedd_fast.backends.inputs import EntropyInputs, ReverseInputs
from sedd_fast.names import TERMS
from sedd_fast.ops._arguments import process

#: A result, or the text of an error.
Results = dict[str, Tensor] | str


@dataclass(frozen=True)
class Case:
    """A call and what it may differ by.

    Attributes:
        text: what is called, for a failure's message.
        run: ``exact`` -> named results; exact ones from float64 copies of the inputs.
        allowed: the exact results -> the error allowed in each number, by name.
        drawn: drawn tokens ("x_s" or "token") -> what is wrong with one of them, or None.
    """

    text: str
    run: Callable[[bool], dict[str, Tensor]]
    allowed: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    drawn: Callable[[Tensor], str | None] | None = None


def few_digits(dtype: torch.dtype, states: int) -> float:
    """The relative error allowed in a sum: lanes add up to 2048 / 2 equal numbers."""
    each = 2e-17 if dtype == torch.float64 else 4e-9
    return TOLERANCE[dtype] + each * min(states, 2048)


def rounding(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """What storing a number in that dtype may change."""
    info = torch.finfo(dtype)
    return info.eps * exact.abs() + 2 * info.smallest_normal


def entropy(draws: Draws) -> Case:
    """score_entropy, its gradient under autograd, and score_entropy_with_grad."""
    graph, shape, dtype = draws.graph(), draws.shape(), draws.choice(DTYPES)
    x_t, x_0 = draws.tokens(shape, graph)
    sigma = draws.levels(shape[0])
    weight = None if draws.happens(0.3) else draws.weight(shape)
    scores = draws.scores(shape, x_t, graph.dim, dtype)
    # An infinite one makes gradients infinite or NaN.
    upstream = draws.weight(shape, (0.0, 1.0, 1e-4, 1e4), (math.nan,))
    reduction = draws.choice(("none", "sum", "mean"))

    def run(exact: bool) -> dict[str, Tensor]:
        leaf = (scores.double() if exact else scores).detach().requires_grad_()
        rest = sigma, x_t, x_0, graph, weight
        loss = sf.score_entropy(leaf, *rest)
        loss.backward(upstream.to(loss.dtype))
        value, grad = sf.score_entropy_with_grad(leaf, *rest, reduction)
        assert leaf.grad is not None
        made = {"loss": loss.detach(), "gradient": leaf.grad, "once": grad}
        return made | ({"value": value} if reduction == "none" or not loss.numel() else {})

    def allowed(exact: dict[str, Tensor]) -> dict[str, Tensor]:
        terms = head_coefficients(EntropyInputs(sigma, x_t, x_0, weight, *process(graph)))
        size, slope = sizes(scores.double(), x_t, x_0, *terms)
        factor = torch.ones_like(size) if weight is None else weight.double().abs()
        each = 1.0 if reduction != "mean" else 1 / max(x_t.numel(), 1)
        little, fp32 = few_digits(dtype, graph.dim), fp32_or_fp64(dtype)
        loss = 2 * little * factor * size
        up = {"gradient": factor * upstream.double().abs(), "once": factor * each}
        stored = {"gradient": dtype, "once": fp32 if dtype == torch.float16 else dtype}
        made = {"loss": loss + rounding(exact["loss"], fp32)}
        made["value"] = made["loss"]
        for name in up:
            # In float32 an exponential below the normal numbers is 0.
            terms = little * slope + (0.0 if dtype == torch.float64 else 1.2e-38)
            made[name] = 2 * up[name][..., None] * terms + rounding(exact[name], stored[name])
        return made

    text = f"score_entropy {graph} {dtype} {shape} {scores.stride()} {sigma.tolist()} {reduction}"
    return Case(text, run, allowed)


def sizes(
    scores: Tensor, x_t: Tensor, x_0: Tensor, a: Tensor, b: Tensor, c: Tensor, k: Tensor
) -> tuple[Tensor, Tensor]:
    """The sum of the absolute terms of a loss, (B, L), and those of its gradient, (B, L, dim)."""
    others = reference.other_states(x_t, scores.shape[-1])
    e = torch.where(others, scores.exp(), 0)
    logs = torch.where(others, scores.abs(), 0).sum(-1)
    at_x_0 = scores.gather(-1, x_0[..., None]).squeeze(-1).abs()
    size = a * e.sum(-1) + torch.where(b > 0, b * logs, 0) + k.abs()
    size = size + torch.where(c > 0, c * at_x_0, 0)
    here = torch.nn.functional.one_hot(x_0, scores.shape[-1])
    slope = a[..., None] * e + b[..., None] + torch.where(here > 0, c[..., None], 0)
    return size, slope


def step(draws: Draws) -> Case:
    """reverse_step and reverse_probs."""
    graph, shape, dtype = draws.graph(), draws.shape(), draws.choice(DTYPES)
    x_t, _ = draws.tokens(shape, graph)
    sigma, dsigma, u = draws.levels(shape[0]), draws.levels(shape[0], True), draws.uniforms(shape)
    scores = draws.scores(shape, x_t, graph.dim, dtype)
    method, shares = draws.choice(METHODS), TokenFilter.drawn(draws)
    only_probs = draws.happens(0.3)

    def run(exact: bool) -> dict[str, Tensor]:
        given = scores.double() if exact else scores
        rest = given, x_t, sigma, dsigma, graph, method
        kept = {"temperature": shares.temperature, "top_p": shares.top_p}
        if only_probs:
            return {"probs": sf.reverse_probs(*rest, **kept)}
        return {"x_s": sf.reverse_step(*rest, u=u, **kept)}

    def allowed(exact: dict[str, Tensor]) -> dict[str, Tensor]:
        # A filter's factor is known to the last digit only, and may cancel where much noise goes.
        fp64 = 1e-11 if shares == TokenFilter() else 1e-6
        return {"probs": torch.full_like(exact["probs"], fp64 if dtype == torch.float64 else 5e-5)}

    text = (
        f"reverse {graph} {dtype} {shape} {scores.stride()} {method} {shares} sigma "
        f"{sigma.tolist()} dsigma {dsigma.tolist()}"
    )
    settings = *process(graph), method, False, shares.temperature, shares.top_p
    dsigma_read = torch.zeros_like(dsigma) if method == "denoise" else dsigma
    inputs = ReverseInputs(x_t, sigma, dsigma_read, u, *settings)
    return Case(text, run, allowed, lambda x_s: wrong_tokens(x_s, scores.double(), inputs))


def sums(draws: Draws) -> Case:
    """row_sums and its gradients."""
    graph, shape, dtype = draws.graph(), draws.shape(), draws.choice(DTYPES)
    x_t, x_0 = draws.tokens(shape, graph)
    a = None if draws.happens(0.3) else draws.weight(shape, (0.0, 1.0, 1e-30, 1e4))
    b = None if draws.happens(0.3) else draws.weight(shape, (0.0, 1.0, 1e-3))
    term = draws.choice(TERMS)
    scores = draws.scores(shape, x_t, graph.dim, dtype)
    up = [draws.weight(shape, (0.0, 1.0), (math.nan,)) for _ in range(2)]

    def run(exact: bool) -> dict[str, Tensor]:
        leaf = (scores.double() if exact else scores).detach().requires_grad_()
        shift = None if b is None else b.double().clone().requires_grad_()
        total, log_x_0 = sf.row_sums(leaf, x_t, x_0, graph, term, a, shift)
        torch.autograd.backward((total, log_x_0), tuple(g.double() for g in up))
        assert leaf.grad is not None
        made = {"total": total.detach(), "log_x_0": log_x_0.detach(), "gradient": leaf.grad}
        return made | ({} if shift is None or shift.grad is None else {"b": shift.grad})

    def allowed(exact: dict[str, Tensor]) -> dict[str, Tensor]:
        others = reference.other_states(x_t, graph.dim)
        one = torch.ones(shape, dtype=torch.float64)
        scale, shift = (one if a is None else a.double()), (one * 0 if b is None else b.double())
        e = torch.where(others, scores.double().exp(), 1)
        moving = scale[..., None].abs() * e
        z = moving + shift[..., None].abs()
        parts = z if term == "affine" else z**2 if term == "square" else 1 + z.log().abs()
        slope = one[..., None] if term == "affine" else 2 * z if term == "square" else 1 / z
        little = 2 * few_digits(dtype, graph.dim)
        # A float32 number below the normal ones may count as 0.
        tiny = 0.0 if dtype == torch.float64 else 1e-30
        up_total, up_x_0 = (g.double().abs().nan_to_num(0.0) for g in up)
        terms = up_total[..., None] * slope * moving
        if term == "log":  # f' = 1 / (a e^l + b), where the sum may cancel
            cancel = (z / (scale[..., None] * e + shift[..., None])).abs()
            cancel = torch.where(z.isinf(), 1.0, cancel)
            parts, terms = parts + cancel, terms * cancel**2
            slope = slope * cancel**2
        return {
            "total": little * torch.where(others, parts, 0).sum(-1) + tiny,
            "log_x_0": torch.zeros(shape, dtype=torch.float64),
            "gradient": little * (terms + up_x_0[..., None])
            + rounding(exact["gradient"], dtype)
            + tiny,
            "b": little * up_total * torch.where(others, slope, 0).sum(-1) + tiny,
        }

    text = f"row_sums {term} {graph} {dtype} {shape} {scores.stride()}"
    return Case(text, run, allowed)


def noising(draws: Draws) -> Case:
    """sample_transition, whose tokens are the same on every backend but for the last bit of u0."""
    graph, shape = draws.graph(), draws.shape()
    _, x_0 = draws.tokens(shape, graph)
    sigma, u = draws.levels(shape[0]), draws.uniforms(shape)

    def run(exact: bool) -> dict[str, Tensor]:
        return {"x_t": sf.sample_transition(x_0, sigma, graph, u=u)}

    def allowed(exact: dict[str, Tensor]) -> dict[str, Tensor]:
        tie = (u[..., 0] + torch.expm1(-sigma.double())[:, None]).abs() < 2**-52
        return {"x_t": torch.where(tie, math.inf, 0.0)}

    return Case(f"sample_transition {graph} {shape} {sigma.tolist()}", run, allowed)


def bad_value(draws: Draws) -> Case:
    """Any operation with a value out of range: the same error, whatever the sizes are."""
    graph, shape = draws.graph(64), draws.shape()
    x_t, x_0 = (x.contiguous().clone() for x in draws.tokens(shape, graph))
    sigma, dsigma = draws.normal(shape[0]).exp(), draws.normal(shape[0]).exp()
    u = draws.uniforms(shape)
    u, scores = u.contiguous().clone(), draws.normal(*shape, graph.dim)
    for value, bad in (
        (sigma, (0.0, -1.0, *(math.nan, math.inf))),
        (dsigma, (-1.0, math.nan, math.inf)),
        (u, (1.0, -0.1, math.nan)),
        (x_t, (-1, graph.dim, 2**62)),
        (x_0, (-1, graph.dim if graph.mask_index is None else graph.mask_index, -(2**63))),
    ):
        if draws.happens(0.3):
            draws.scatter(value, bad, 1)
    op = draws.choice(("score_entropy", "once", "step", "probs", "noising", "row_sums"))
    method = draws.choice(METHODS)

    def run(exact: bool) -> dict[str, Tensor]:
        if op == "score_entropy":
            return {"loss": sf.score_entropy(scores, sigma, x_t, x_0, graph)}
        if op == "once":
            return {"loss": sf.score_entropy_with_grad(scores, sigma, x_t, x_0, graph)[1]}
        if op == "step":
            return {"x_s": sf.reverse_step(scores, x_t, sigma, dsigma, graph, method, u=u)}
        if op == "probs":
            return {"probs": sf.reverse_probs(scores, x_t, sigma, dsigma, graph, method)}
        if op == "noising":
            return {"x_t": sf.sample_transition(x_0, sigma, graph, u=u)}
        return {"total": sf.row_sums(scores, x_t, x_0, graph, "square")[0]}

    def allowed(exact: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: 1e-9 + 1e-9 * value.double().abs() for name, value in exact.items()}

    return Case(f"{op} {graph} {shape} {method}, perhaps a bad value", run, allowed)


def outcome(case: Case, backend: str, exact: bool = False) -> Results:
    """The results of a case on a backend, or its error."""
    with sf.use_backend(backend):
        try:
            return case.run(exact)
        except ValueError as error:
            return f"ValueError: {error}".replace("the head's output", "log_score")


def differences(case: Case, backend: str) -> str | None:
    """How a backend's results differ from the float64 reference's, or None."""
    expected, got = outcome(case, "reference", True), outcome(case, backend)
    if isinstance(expected, str) or isinstance(got, str):
        return None if expected == got else f"{got!r}, expected {expected!r}"
    allowed = case.allowed(expected) if "x_s" not in expected else {}
    for name, exact in expected.items():
        if name in ("x_s", "token") and case.drawn is not None:
            found = case.drawn(got[name])
        else:
            found = wrong_numbers(got[name], exact, allowed.get(name))
        if found:
            return f"{name}: {found}"
    return None


def wrong_numbers(got: Tensor, exact: Tensor, allowed: Tensor | None) -> str | None:
    """The first number that is further from the exact one than allowed, or None."""
    if got.shape != exact.shape:
        return f"shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    stored = exact.to(got.dtype)  # may overflow or vanish there
    error = (got.double() - exact.double()).abs()
    same = (got == stored) | (got.isnan() & stored.isnan())
    close = torch.zeros_like(same) if allowed is None else error <= allowed
    if got.is_floating_point() and allowed is not None:
        limit = torch.finfo(got.dtype).max  # at the end of the range either is right
        close |= got.isinf() & (exact.abs() + allowed >= limit) & (got.sign() == exact.sign())
    bad = ~(same | close)
    if not bool(bad.any()):
        return None
    at = tuple(int(i) for i in bad.nonzero()[0])
    room = "" if allowed is None else f", allowed {allowed[at].item():.3g}"
    return f"{int(bad.sum())} off; at {at} {got[at].item()!r}, exact {exact[at].item()!r}{room}"


def wrong_tokens(x_s: Tensor, scores: Tensor, inputs: ReverseInputs) -> str | None:
    """The first token that u does not pick in the float64 distribution, up to 2e-5 in u."""
    slack = 2e-5
    assert inputs.u is not None
    weights, stay = reference.reverse_weights(scores, inputs)
    u0, u1 = inputs.u.unbind(-1)
    moving, stays = weights.sum(-1), x_s == inputs.x_t
    p_move = moving / (moving + stay)
    right = torch.where(stays, u0 >= p_move - slack, u0 <= p_move + slack)
    upper = weights.cumsum(-1).gather(-1, x_s[..., None]).squeeze(-1)
    own = weights.gather(-1, x_s[..., None]).squeeze(-1)
    at = u1 * moving
    inside = (at >= upper - own - slack * moving) & (at <= upper + slack * moving)
    right &= stays | (inside & ((own > 0) | (moving < 1e-30)))  # subnormal weights may be 0
    if bool(right.all()):
        return None
    b, i = (~right).nonzero()[0].tolist()
    return (
        f"at {(b, i)} {int(x_s[b, i])} for u {inputs.u[b, i].tolist()}, x_t "
        f"{int(inputs.x_t[b, i])}, moves with {float(p_move[b, i])!r}"
    )
