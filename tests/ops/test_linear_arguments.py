"""Bad input to the operations on a linear head: the errors name the argument and the remedy."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import sedd_fast as sf
from helpers.head_cases import HEADS, Head, make_head
from helpers.op_cases import Backend, graph_id

pytestmark = pytest.mark.any_backend
Change = Callable[[Head], dict[str, Any]]
BOTH = ("entropy", "step")
by_head = pytest.mark.parametrize(("graph", "scaled"), HEADS, ids=lambda v: graph_id(v) or str(v))


def given(**changes: Callable[[Any], Any]) -> Change:
    """A change of ``inputs``: the fields are computed from it by functions."""
    return lambda h: {"inputs": replace(h.inputs, **{k: f(h.inputs) for k, f in changes.items()})}


SHAPES_AND_DTYPES = (
    (BOTH, lambda h: {"hidden": h.hidden.tolist()}, TypeError, "hidden.*torch.Tensor.*list"),
    (BOTH, lambda h: {"hidden": h.hidden.long()}, TypeError, "hidden.*float32.*int64"),
    (BOTH, lambda h: {"hidden": h.hidden[0]}, ValueError, r"hidden.*\(B, L, H\).*\(8, 16\)"),
    (BOTH, lambda h: {"hidden": h.hidden.double()}, TypeError, "hidden is.*64 but weight.*32"),
    (BOTH, lambda h: {"hidden": h.hidden[..., 1:]}, ValueError, r"weight must have.*15.*16"),
    (BOTH, lambda h: {"weight": h.weight.long()}, TypeError, "weight.*float32.*int64"),
    (BOTH, lambda h: {"weight": h.weight[1:]}, ValueError, r"weight must have shape.*states.*got"),
    (BOTH, lambda h: {"weight": h.weight.to("meta")}, ValueError, r"weight is on meta.*\.to\("),
    (BOTH, lambda h: {"bias": h.bias.long()}, TypeError, "bias.*float32.*int64"),
    (BOTH, lambda h: {"bias": h.bias[1:]}, ValueError, "bias must have shape.*states.*got"),
    (BOTH, lambda h: {"bias": h.bias.to("meta")}, ValueError, "bias is on meta"),
    (BOTH, given(x_t=lambda i: i.x_t.int()), TypeError, r"x_t.*int64.*int32.*\.long\(\)"),
    (BOTH, given(x_t=lambda i: i.x_t[:, 1:]), ValueError, r"x_t.*\(3, 8\).*\(3, 7\)"),
    (BOTH, given(x_t=lambda i: i.x_t.to("meta")), ValueError, "x_t is on meta"),
    (("entropy",), given(x_0=lambda i: i.x_0.int()), TypeError, "x_0.*int64"),
    (("entropy",), given(x_0=lambda i: i.x_0[:2]), ValueError, r"x_0.*\(3, 8\).*\(2, 8\)"),
    (("entropy",), given(x_0=lambda i: i.x_0.to("meta")), ValueError, "x_0 is on meta"),
    (BOTH, given(sigma=lambda i: "much"), TypeError, "sigma.*number or a tensor.*str"),
    (BOTH, given(sigma=lambda i: i.sigma[:2]), ValueError, r"sigma.*\(3,\).*\(2,\)"),
    (("step",), given(dsigma=lambda i: None), ValueError, "dsigma is needed"),
    (("step",), given(u=lambda i: i.u.float()), TypeError, "u must be float64"),
    (("entropy",), given(row_weight=lambda i: i.sigma), ValueError, r"row_weight.*\(3, 8\)"),
    (BOTH, given(graph=lambda i: "absorbing"), TypeError, "graph must be.*str"),
    (BOTH, given(graph=lambda i: type(i.graph)(20)), ValueError, "weight must have.*20 tokens"),
)
VALUES = (
    (BOTH, given(sigma=lambda i: 0.0), "sigma must be positive"),
    (BOTH, given(sigma=lambda i: at(i.sigma, torch.nan)), "sigma.*nan.*sequence 1"),
    (BOTH, given(x_t=lambda i: at(i.x_t, 12)), r"x_t.*12 at position \(1, 2\).*vocabulary"),
    (BOTH, given(x_t=lambda i: at(i.x_t, -1)), r"x_t.*-1 at position \(1, 2\)"),
    (("entropy",), given(x_0=lambda i: at(i.x_0, -1)), "x_0.*tokens 0 .. 10.*-1"),
    (("entropy",), given(x_0=lambda i: at(i.x_0, 11)), r"x_0.*11.*\(1, 2\)"),
    (("step",), given(dsigma=lambda i: at(i.dsigma, -0.1)), "dsigma must be non-negative"),
    (("step",), given(u=lambda i: at(i.u, 1.0)), r"u must lie in \[0, 1\).*1.0"),
)


def at(tensor: torch.Tensor, value: float) -> torch.Tensor:
    """A copy with one wrong value: for sequence 1, at position 2."""
    changed = tensor.clone()
    changed[(1,) if tensor.dim() == 1 else (1, 2)] = value
    return changed


def cases(table: tuple) -> list:
    return [pytest.param(op, *row[1:], id=f"{op}-{row[-1]}") for row in table for op in row[0]]


def call(op: str, head: Head, **rest: Any) -> torch.Tensor:
    return head.entropy(**rest) if op == "entropy" else head.step(**rest)


@pytest.mark.parametrize(("op", "change", "error", "words"), cases(SHAPES_AND_DTYPES))
@by_head
def test_dtype_shape_device(graph, scaled, op, change, error, words):
    head = make_head(graph, scaled)
    with pytest.raises(error, match=words):
        call(op, replace(head, **change(head)))


@pytest.mark.parametrize(("op", "change", "words"), cases(VALUES))
@by_head
@pytest.mark.usefixtures("has_heads")
def test_values(backend: Backend, graph, scaled, op, change, words, monkeypatch):
    monkeypatch.setenv("SEDD_FAST_CHECK", "1")
    head = make_head(graph, scaled, device=backend.device).leaves()
    bad = replace(head, **change(head))
    for rest in ({"reduction": "none"}, {"reduction": "mean"}) if op == "entropy" else ({},):
        with pytest.raises(ValueError, match=words):
            call(op, bad, **rest)


@pytest.mark.parametrize("op", BOTH)
@by_head
def test_settings(graph, scaled, op):
    head = make_head(graph, scaled)
    for workspace in (0, -1, 1.5, True, "32MB"):
        with pytest.raises(ValueError, match="workspace must be a positive number of bytes, got"):
            call(op, head, workspace=workspace)
    with pytest.raises(ValueError, match=r"reduction must be one of.*'avg'"):
        head.entropy("avg")
    with pytest.raises(ValueError, match=r"method must be one of.*'exact'"):
        head.step("exact")


@pytest.mark.parametrize("op", BOTH)
def test_a_scaled_uniform_head_is_not_defined(op):
    head = replace(make_head(sf.Uniform(11)), scale_by_sigma=True)
    with pytest.raises(ValueError, match=r"scale_by_sigma=True.*absorbing.*scale_by_sigma=False"):
        call(op, head)


@pytest.mark.parametrize("op", BOTH)
def test_autocast_accepts_operands_of_different_dtypes(op):
    head = make_head(sf.Absorbing(11), True)
    mixed = replace(head, hidden=head.hidden.bfloat16())
    with pytest.raises(TypeError, match=r"bfloat16 but weight torch.float32.*torch.autocast"):
        call(op, mixed)
    with torch.autocast("cpu", torch.bfloat16):
        call(op, mixed)
