"""The dtype in which a CPU forms a head's products."""

import pytest
import torch

import sedd_fast as sf
from sedd_fast.backends import cpp, products

V, H = 50, 16


@pytest.mark.skipif(cpp.unavailable() is not None, reason="no C++ kernels here")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_without_products_in_half_the_head_computes_in_float32(dtype, monkeypatch):
    monkeypatch.setattr(products, "_has_products", lambda dtype: dtype == torch.float32)
    generator = torch.Generator().manual_seed(0)
    graph = sf.Uniform(V)
    hidden = torch.randn(2, 5, H, generator=generator).to(dtype)
    weight = torch.randn(V, H, generator=generator).to(dtype)
    tokens = torch.randint(V, (2, 2, 5), generator=generator)

    def loss(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        with sf.use_backend("cpp"):
            return sf.linear_score_entropy(hidden, weight, None, 0.5, *tokens, graph, False)

    found = loss(hidden, weight)
    assert torch.equal(found, loss(hidden.float(), weight.float()))
    monkeypatch.setattr(products, "_has_products", lambda dtype: True)
    assert not torch.equal(found, loss(hidden, weight))  # rounded to half


def test_other_devices_and_dtypes_keep_their_products(monkeypatch):
    monkeypatch.setattr(products, "_has_products", lambda dtype: dtype.itemsize > 2)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert products.product_dtype(torch.bfloat16, cpu) == torch.float32
    assert products.product_dtype(torch.float64, cpu) == torch.float64
    assert products.product_dtype(torch.bfloat16, gpu) == torch.bfloat16
