"""Triton's interpreter, made faster by helpers/interpreter.py, is right and finds overflows."""

import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")


@triton.jit
def _arithmetic(at, out, BLOCK: tl.constexpr, KIND: tl.constexpr):
    index = tl.arange(0, BLOCK)
    value = tl.load(at + index)
    if KIND == "add":
        value = value + 1
    elif KIND == "sub":
        value = value - 2
    else:
        value = value * 3
    columns = tl.broadcast_to(value[None, :], (2, BLOCK))
    tl.store(out + tl.arange(0, 2)[:, None] * BLOCK + index[None, :], columns)


def run(kind: str, values: list[int], dtype: torch.dtype = torch.int32) -> list[list[int]]:
    """What the kernel stores: twice the row of results."""
    given = torch.tensor(values, dtype=dtype)
    out = torch.zeros((2, len(values)), dtype=dtype)
    _arithmetic[(1,)](given, out, BLOCK=len(values), KIND=kind)
    return out.tolist()


@pytest.mark.parametrize(
    ("kind", "expected"), [("add", [6, 8, 0, 1]), ("sub", [3, 5, -3, -2]), ("mul", [15, 21, -3, 0])]
)
def test_integers(kind, expected):
    assert run(kind, [5, 7, -1, 0]) == [expected] * 2


@pytest.mark.parametrize(
    ("kind", "value"), [("add", 2**31 - 1), ("sub", -(2**31)), ("mul", 2**30), ("mul", -(2**30))]
)
def test_an_overflow_fails(kind, value):
    with pytest.raises(triton.runtime.errors.InterpreterError, match=f"int32 overflow .* {kind}"):
        run(kind, [0, value])
    assert run(kind, [0, value], torch.int64)[0][1] != 0
