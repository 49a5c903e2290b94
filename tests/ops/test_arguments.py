"""Bad input: a ValueError or TypeError names the argument, its value, and the remedy."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import sedd_fast as sf
from helpers.op_cases import GRAPHS, Backend, Inputs, graph_id, make_inputs

pytestmark = pytest.mark.any_backend
A, U = sf.Absorbing(11), sf.Uniform(11)
#: What is changed in good inputs, and the error: (operations, change, type, words).
Change = Callable[[Inputs], dict[str, Any]]
ENTROPY, REVERSE, NOISING = ("entropy", "once"), ("step", "probs"), ("noising",)
SCORED = ENTROPY + REVERSE
ALL = SCORED + NOISING


def call(op: str, inputs: Inputs, **rest: Any) -> Any:
    if op == "entropy":
        return sf.score_entropy(*inputs.entropy(), inputs.row_weight, **rest)
    if op == "once":
        return sf.score_entropy_with_grad(*inputs.entropy(), inputs.row_weight, **rest)
    if op == "step":
        return sf.reverse_step(*inputs.reverse(), **{"u": inputs.u, **rest})
    if op == "probs":
        return sf.reverse_probs(*inputs.reverse(), **rest)
    return sf.sample_transition(inputs.x_0, inputs.sigma, inputs.graph, **{"u": inputs.u, **rest})


SHAPES_AND_DTYPES = (
    (SCORED, lambda i: {"log_score": i.log_score.tolist()}, TypeError, "log_score.*torch.Tensor"),
    (SCORED, lambda i: {"log_score": i.log_score.long()}, TypeError, "log_score.*float32.*int64"),
    (SCORED, lambda i: {"log_score": i.log_score[0]}, ValueError, "log_score.*shape.*unsqueeze"),
    (SCORED, lambda i: {"log_score": i.log_score[..., :-1]}, ValueError, "log_score has.*agree"),
    (SCORED, lambda i: {"graph": type(i.graph)(20)}, ValueError, "states.*20 tokens.*agree"),
    (SCORED, lambda i: {"x_t": i.x_t.int()}, TypeError, r"x_t.*int64.*int32.*\.long\(\)"),
    (SCORED, lambda i: {"x_t": i.x_t.tolist()}, TypeError, "x_t.*torch.Tensor.*list"),
    (SCORED, lambda i: {"x_t": i.x_t[:, :-1]}, ValueError, r"x_t.*\(3, 8\).*\(3, 7\)"),
    (SCORED, lambda i: {"x_t": i.x_t.to("meta")}, ValueError, r"x_t is on meta.*\.to\("),
    (ENTROPY, lambda i: {"x_0": i.x_0.float()}, TypeError, r"x_0.*int64.*float32.*\.long\(\)"),
    (ENTROPY, lambda i: {"x_0": i.x_0[0]}, ValueError, r"x_0.*\(3, 8\).*\(8,\)"),
    (ENTROPY, lambda i: {"x_0": i.x_0.to("meta")}, ValueError, r"x_0 is on meta.*\.to\("),
    (NOISING, lambda i: {"x_0": i.x_0.int()}, TypeError, r"x_0.*int64.*int32.*\.long\(\)"),
    (NOISING, lambda i: {"x_0": i.x_0[0]}, ValueError, r"x_0.*\(B, L\).*\(8,\).*x_0\[None\]"),
    (ALL, lambda i: {"sigma": "much"}, TypeError, "sigma.*number or a tensor.*str"),
    (ALL, lambda i: {"sigma": i.sigma.cfloat()}, TypeError, "sigma.*real"),
    (ALL, lambda i: {"sigma": i.sigma > 0}, TypeError, "sigma.*real.*bool"),
    (ALL, lambda i: {"sigma": i.sigma[:2]}, ValueError, r"sigma.*\(3,\).*\(3, 1\).*\(2,\)"),
    (ALL, lambda i: {"sigma": i.sigma.requires_grad_()}, ValueError, "sigma.*gradient.*detach"),
    (REVERSE, lambda i: {"dsigma": i.dsigma[None]}, ValueError, r"dsigma.*\(3,\).*\(1, 3\)"),
    (REVERSE, lambda i: {"dsigma": None}, ValueError, "dsigma is needed.*noise removed"),
    (ENTROPY, lambda i: {"row_weight": [1.0]}, TypeError, "row_weight.*torch.Tensor"),
    (ENTROPY, lambda i: {"row_weight": i.sigma}, ValueError, r"row_weight.*\(3, 8\).*expand"),
    (ENTROPY, lambda i: {"row_weight": i.row_weight.cfloat()}, TypeError, "row_weight.*real"),
    (
        ENTROPY,
        lambda i: {"row_weight": i.row_weight.requires_grad_()},
        ValueError,
        "row_weight.*gradient.*detach",
    ),
    (ALL, lambda i: {"graph": "absorbing"}, TypeError, r"graph.*sedd_fast\.Absorbing\(V\).*str"),
    (ALL, lambda i: {"graph": None}, TypeError, r"graph.*NoneType"),
    (ALL, lambda i: {"graph": sf.Absorbing}, TypeError, r"graph.*sedd_fast\.Absorbing\(V\)"),
    (("step", "noising"), lambda i: {"u": i.u.tolist()}, TypeError, "u must be a torch.Tensor"),
    (("step", "noising"), lambda i: {"u": i.u.float()}, TypeError, "u must be float64.*float32"),
    (("step", "noising"), lambda i: {"u": i.u[..., 0]}, ValueError, r"u.*\(3, 8, 2\).*\(3, 8\)"),
    (("step", "noising"), lambda i: {"u": i.u.to("meta")}, ValueError, "u is on meta"),
)
VALUES = (
    (ALL, lambda i: {"sigma": at(i.sigma, 0.0)}, "sigma must be positive.*0.0.*sequence 1"),
    (ALL, lambda i: {"sigma": at(i.sigma, -1.0)}, "sigma must be positive.*-1.0.*schedule"),
    (ALL, lambda i: {"sigma": at(i.sigma, torch.nan)}, "sigma.*nan"),
    (ALL, lambda i: {"sigma": at(i.sigma, torch.inf)}, "sigma.*finite.*inf"),
    (ALL, lambda i: {"sigma": 0.0}, "sigma must be positive"),
    (REVERSE, lambda i: {"dsigma": at(i.dsigma, -0.1)}, "dsigma must be non-negative.*-0.1"),
    (REVERSE, lambda i: {"dsigma": at(i.dsigma, torch.nan)}, "dsigma.*nan"),
    (SCORED, lambda i: {"x_t": at(i.x_t, -1)}, r"x_t.*states 0.*-1 at position \(1, 2\)"),
    (SCORED, lambda i: {"x_t": at(i.x_t, i.graph.dim)}, r"x_t.*at position \(1, 2\).*vocabulary"),
    (SCORED, lambda i: {"x_t": at(i.x_t, 2**62)}, "x_t.*4611686018427387904"),
    (ENTROPY + NOISING, lambda i: {"x_0": at(i.x_0, -1)}, "x_0.*tokens 0 .. 10.*-1"),
    (ENTROPY + NOISING, lambda i: {"x_0": at(i.x_0, 12)}, "x_0.*tokens 0 .. 10.*12"),
    (ENTROPY + NOISING, lambda i: {"x_0": at(i.x_0, 11)}, r"x_0.*11.*\(1, 2\)"),
    (("step", "noising"), lambda i: {"u": at(i.u, 1.0)}, r"u must lie in \[0, 1\).*1.0"),
    (("step", "noising"), lambda i: {"u": at(i.u, -1e-9)}, r"u must lie in \[0, 1\)"),
    (("step", "noising"), lambda i: {"u": at(i.u, torch.nan)}, r"u must lie in \[0, 1\).*nan"),
)


def at(tensor: torch.Tensor, value: float) -> torch.Tensor:
    """A copy with one wrong value: for sequence 1, at position 2."""
    changed = tensor.clone()
    changed[(1,) if tensor.dim() == 1 else (1, 2)] = value
    return changed


def cases(table: tuple) -> list:
    return [pytest.param(op, *row[1:], id=f"{op}-{row[-1]}") for row in table for op in row[0]]


@pytest.mark.parametrize(("op", "change", "error", "words"), cases(SHAPES_AND_DTYPES))
@pytest.mark.parametrize("graph", GRAPHS, ids=graph_id)
def test_dtype_shape_device(graph, op, change, error, words):
    inputs = make_inputs(graph)
    with pytest.raises(error, match=words):
        call(op, replace(inputs, **change(inputs)))


@pytest.mark.parametrize(("op", "change", "words"), cases(VALUES))
@pytest.mark.parametrize("graph", GRAPHS, ids=graph_id)
def test_values(backend: Backend, graph, op, change, words, monkeypatch):
    monkeypatch.setenv("SEDD_FAST_CHECK", "1")
    # Every token may move, so u is read in every row.
    inputs = make_inputs(graph, device=backend.device)
    if graph.mask_index is not None:
        inputs = replace(inputs, x_t=torch.full_like(inputs.x_t, graph.mask_index))
    with pytest.raises(ValueError, match=words):
        call(op, replace(inputs, **change(inputs)))


@pytest.mark.parametrize("op", ["step", "probs"])
def test_an_unknown_method(op):
    with pytest.raises(ValueError, match=r"method.*'analytic', 'euler', 'denoise'.*'exact'"):
        call(op, make_inputs(U), method="exact")


@pytest.mark.parametrize("op", ["entropy", "once"])
def test_an_unknown_reduction(op):
    with pytest.raises(ValueError, match=r"reduction.*'none', 'sum', 'mean'.*'avg'"):
        call(op, make_inputs(U), reduction="avg")


@pytest.mark.parametrize("op", ["step", "noising"])
def test_both_u_and_generator(op):
    with pytest.raises(ValueError, match=r"u and generator.*one of them"):
        call(op, make_inputs(U), generator=torch.Generator())


@pytest.mark.not_interpreted
def test_denoise_needs_no_dsigma(backend: Backend):
    inputs = make_inputs(U, device=backend.device)
    tokens = sf.reverse_step(*inputs.reverse(), "denoise", u=inputs.u)
    for unread in (None, -1.0, torch.full_like(inputs.sigma, torch.nan)):
        again = sf.reverse_step(
            inputs.log_score, inputs.x_t, inputs.sigma, unread, U, "denoise", u=inputs.u
        )
        assert torch.equal(again, tokens)


@pytest.mark.parametrize(
    ("op", "change", "error", "words"),
    [
        ("entropy", lambda i: {"x_t": i.x_t.int()}, TypeError, "x_t.*int64"),
        ("entropy", lambda i: {"log_score": i.log_score[..., :-1]}, ValueError, "log_score has"),
        ("step", lambda i: {"u": i.u.float()}, TypeError, "u must be float64"),
        ("entropy", lambda i: {"x_0": at(i.x_0, -1)}, ValueError, "x_0.*-1"),
        ("step", lambda i: {"sigma": at(i.sigma, torch.nan)}, ValueError, "sigma.*nan"),
        ("noising", lambda i: {"x_0": at(i.x_0, 11)}, ValueError, "x_0.*mask"),
    ],
)
def test_compiled(op, change, error, words):
    """torch.compile gives the same message, whether the error occurs in tracing or in running."""
    inputs = make_inputs(A)
    bad = replace(inputs, **change(inputs))
    torch.compiler.reset()
    compiled = torch.compile(lambda: call(op, bad), backend="eager")
    with pytest.raises(error, match=words):
        compiled()


def test_a_generator_under_compile_raises_with_the_remedy():
    inputs = make_inputs(U)
    generator = torch.Generator()
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x_0: sf.sample_transition(x_0, 0.5, U, generator), backend="eager", fullgraph=True
    )
    with pytest.raises(RuntimeError, match=r"u = torch\.rand\(B, L, 2.*pass u="):
        compiled(inputs.x_0)
