"""Bad input to linear_cross_entropy and linear_denoise: errors name the argument and the remedy."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import sedd_fast as sf
from helpers.op_cases import BACKENDS, Backend
from helpers.softmax_cases import SoftmaxHead, make_softmax_head

pytestmark = pytest.mark.any_backend
Change = Callable[[SoftmaxHead], dict[str, Any]]
LOSS, STEP = ("entropy",), ("denoise",)
BOTH = LOSS + STEP


def given(**changes: Any) -> Change:
    """A change of the call's keyword arguments."""
    return lambda h: {"call": changes}


SHAPES_AND_DTYPES = (
    (BOTH, lambda h: {"hidden": h.hidden.tolist()}, TypeError, "hidden.*torch.Tensor.*list"),
    (BOTH, lambda h: {"hidden": h.hidden.long()}, TypeError, "hidden.*float32.*int64"),
    (BOTH, lambda h: {"hidden": h.hidden[0, 0]}, ValueError, r"hidden.*\(B, L, H\) or \(N, H\).*6"),
    (BOTH, lambda h: {"hidden": h.hidden[None]}, ValueError, r"hidden.*\(B, L, H\) or \(N, H\)"),
    (BOTH, lambda h: {"hidden": h.hidden.double()}, TypeError, "hidden is.*64 but weight.*32"),
    (BOTH, lambda h: {"hidden": h.hidden[..., 1:]}, ValueError, r"weight must have.*15.*16"),
    (BOTH, lambda h: {"weight": h.weight.long()}, TypeError, "weight.*float32.*int64"),
    (
        BOTH,
        lambda h: {"weight": h.weight[:0]},
        ValueError,
        r"weight.*at least one state.*\(0, 16\)",
    ),
    (BOTH, lambda h: {"weight": h.weight[0]}, ValueError, r"weight must have.*16.*got"),
    (BOTH, lambda h: {"weight": h.weight.to("meta")}, ValueError, r"weight is on meta.*\.to\("),
    (BOTH, lambda h: {"bias": h.bias.long()}, TypeError, "bias.*float32.*int64"),
    (BOTH, lambda h: {"bias": h.bias[1:]}, ValueError, r"bias must have shape \(11,\).*10"),
    (BOTH, lambda h: {"bias": h.bias.to("meta")}, ValueError, "bias is on meta"),
    (LOSS, lambda h: {"target": h.target.tolist()}, TypeError, "target.*torch.Tensor.*list"),
    (LOSS, lambda h: {"target": h.target.int()}, TypeError, r"target.*int64.*int32.*\.long\(\)"),
    (LOSS, lambda h: {"target": h.target[:, 1:]}, ValueError, r"target.*\(2, 6\).*\(2, 5\)"),
    (LOSS, lambda h: {"target": h.target.to("meta")}, ValueError, "target is on meta"),
    (LOSS, lambda h: {"row_weight": 1.0}, TypeError, "row_weight.*torch.Tensor.*float"),
    (LOSS, lambda h: {"row_weight": h.row_weight[0]}, ValueError, r"row_weight.*\(2, 6\).*\(6,\)"),
    (LOSS, lambda h: {"row_weight": h.row_weight.to("meta")}, ValueError, "row_weight is on meta"),
    (LOSS, lambda h: {"row_weight": h.row_weight * 1j}, TypeError, "row_weight must be real"),
    (
        LOSS,
        lambda h: {"row_weight": h.row_weight.clone().requires_grad_()},
        ValueError,
        "row_weight requires a gradient.*detach",
    ),
    (STEP, lambda h: {"u": h.u.tolist()}, TypeError, "u must be.*torch.Tensor.*list"),
    (STEP, lambda h: {"u": h.u.float()}, TypeError, "u must be float64, got torch.float32.*dtype="),
    (STEP, lambda h: {"u": h.u[..., 0]}, ValueError, r"u must have shape \(2, 6, 2\).*\(2, 6\)"),
    (STEP, lambda h: {"u": h.u.flatten(0, 1)}, ValueError, r"u must have shape \(2, 6, 2\)"),
    (STEP, lambda h: {"u": h.u.to("meta")}, ValueError, "u is on meta"),
)
SETTINGS = (
    (BOTH, given(excluded=11), ValueError, "excluded must hold states 0 .. 10.*got 11"),
    (BOTH, given(excluded=[2, -1]), ValueError, "excluded must hold states 0 .. 10.*got -1"),
    (BOTH, given(excluded=range(11)), ValueError, "excluded must leave a state, got all 11"),
    (BOTH, given(excluded=1.5), TypeError, "excluded must be an int or ints, got float"),
    (BOTH, given(excluded=[1.0]), TypeError, "excluded must be an int or ints, got float"),
    (BOTH, given(excluded=True), TypeError, "excluded must be an int or ints, got bool"),
    (BOTH, given(excluded="mask"), TypeError, "excluded must be an int or ints, got str"),
    (BOTH, given(excluded=torch.tensor([1])), TypeError, "excluded must be.*got Tensor"),
    (BOTH, given(softcap=0), ValueError, "softcap must be positive and finite.*None.*got 0"),
    (BOTH, given(softcap=-3.0), ValueError, "softcap must be positive"),
    (BOTH, given(softcap=float("nan")), ValueError, "softcap must be positive"),
    (BOTH, given(softcap=float("inf")), ValueError, "softcap must be positive and finite"),
    (BOTH, given(softcap="30"), TypeError, "softcap must be a number, got str"),
    (BOTH, given(workspace=0), ValueError, "workspace must be a positive number of bytes, got 0"),
    (BOTH, given(workspace=True), ValueError, "workspace must be a positive.*got True"),
    (BOTH, given(workspace="32MB"), ValueError, "workspace must be a positive.*'32MB'"),
    (LOSS, given(reduction="avg"), ValueError, r"reduction must be one of.*'avg'"),
    (LOSS, given(z_loss="much"), TypeError, "z_loss must be a number, got str"),
    (LOSS, given(z_loss=float("nan")), ValueError, "z_loss must be finite, got nan"),
    (LOSS, given(ignore_index=None), TypeError, "ignore_index must be an int, got NoneType"),
    (LOSS, given(ignore_index=1.5), TypeError, "ignore_index must be an int, got float"),
    (STEP, given(temperature=0.0), ValueError, "temperature must be positive, got 0.0"),
    (STEP, given(temperature="hot"), TypeError, "temperature must be a number, got str"),
    (STEP, given(top_p=0), ValueError, r"top_p must lie in \(0, 1\], got 0"),
    (STEP, given(top_p=1.5), ValueError, "top_p must lie in"),
    (STEP, given(want="token"), TypeError, r"want must be a sequence of names, got 'token'.*\('t"),
    (STEP, given(want=()), ValueError, "want must name at least one of token, log_prob"),
    (STEP, given(want=("token", "tokens")), ValueError, "want must be one of.*'tokens'"),
    (STEP, given(want=(1,)), ValueError, "want must be one of.*got 1"),
    (STEP, given(want=None), TypeError, "want must be a sequence of names, got None"),
    (
        STEP,
        given(generator=torch.Generator()),
        ValueError,
        "u and generator were both given; pass one",
    ),
)
VALUES = (
    (LOSS, lambda h: {"target": at(h.target, 11)}, r"target holds 11 at.*\(1, 2\).*not in 0 .. 10"),
    (LOSS, lambda h: {"target": at(h.target, -1)}, r"target holds -1 at.*\(1, 2\).*ignore_index"),
    (LOSS, lambda h: {"target": at(h.target, 2**62)}, r"target holds 4611686018427387904"),
    (LOSS, lambda h: {"target": at(h.target, 4)}, r"target holds 4 .*\(1, 2\).*an excluded state"),
    (LOSS, lambda h: {"target": at(h.target, 7)}, r"target holds 7 .*\(1, 2\).*an excluded state"),
    (STEP, lambda h: {"u": at(h.u, 1.0)}, r"u must lie in \[0, 1\), got 1.0 at position \(1, 2, 1"),
    (STEP, lambda h: {"u": at(h.u, -0.1)}, r"u must lie in \[0, 1\), got -0.1"),
    (STEP, lambda h: {"u": at(h.u, torch.nan)}, r"u must lie in \[0, 1\), got nan"),
)


def at(tensor: torch.Tensor, value: float) -> torch.Tensor:
    """A copy with one wrong value: for sequence 1, at position 2."""
    changed = tensor.clone()
    changed[(1, 2) if tensor.dim() == 2 else (1, 2, 1)] = value
    return changed


def cases(table: tuple) -> list:
    return [pytest.param(op, *row[1:], id=f"{op}-{row[-1]}") for row in table for op in row[0]]


def small(device: str = "cpu") -> SoftmaxHead:
    """Every row of which has a loss."""
    head = make_softmax_head(11, shape=(2, 6), excluded=(4, 6, 7), device=device)
    ones = torch.ones_like(head.row_weight)
    return replace(head, target=head.target.clamp(min=0), row_weight=ones)


def call(op: str, head: SoftmaxHead, change: Change, **rest: Any) -> Any:
    changes = change(head)
    rest = {**rest, **changes.pop("call", {})}
    return getattr(replace(head, **changes), op)(**rest)


@pytest.mark.parametrize(("op", "change", "error", "words"), cases(SHAPES_AND_DTYPES + SETTINGS))
def test_dtype_shape_device_setting(op, change, error, words):
    with pytest.raises(error, match=words):
        call(op, small(), change)


@pytest.mark.parametrize("backend", BACKENDS, ids=str, indirect=True)
@pytest.mark.parametrize(("op", "change", "words"), cases(VALUES))
@pytest.mark.usefixtures("has_heads")
def test_values(backend: Backend, op, change, words, monkeypatch):
    """On a GPU too where SEDD_FAST_CHECK asks for it."""
    monkeypatch.setenv("SEDD_FAST_CHECK", "1")
    head = small(backend.device).leaves()
    for rest in ({"reduction": "none"}, {"reduction": "mean"}) if op == "entropy" else ({},):
        with pytest.raises(ValueError, match=words):
            call(op, head, change, **rest)


def test_a_target_that_is_not_read_may_be_anything():
    """Where the weight of the row is 0; one that is ignored is a state nowhere."""
    head = small()
    bad = replace(head, target=at(head.target, 99), row_weight=at(head.row_weight, 0.0))
    assert float(bad.entropy()[1, 2]) == 0
    assert float(replace(bad, row_weight=None, ignore_index=99).entropy()[1, 2]) == 0


@pytest.mark.parametrize("op", BOTH)
def test_autocast_accepts_operands_of_different_dtypes(op):
    mixed = replace(small(), hidden=small().hidden.bfloat16())
    with pytest.raises(TypeError, match=r"bfloat16 but weight torch.float32.*torch.autocast"):
        getattr(mixed, op)()
    with torch.autocast("cpu", torch.bfloat16):
        getattr(mixed, op)()


def test_numbers_of_numpy_are_states():
    numpy = pytest.importorskip("numpy")
    head = small()
    expected = head.entropy()
    assert torch.equal(head.entropy(excluded=numpy.array([4, 6, 7])), expected)
    assert sf.linear_denoise(*head.operands, excluded=numpy.int64(4)).token is not None
