"""The Triton kernels in Triton's interpreter, on CPU tensors, against the float64 reference.

Each graph and dtype is a process of its own: whether kernels are interpreted is fixed when Triton
is imported. Blocks are made small, so that small shapes cross every edge of them.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)

PROGRAM = """
import sys
import torch
import sedd_fast as sf
from sedd_fast.kernels import reverse_step as reverse, score_entropy as entropy

for settings in entropy.SETTINGS.values() if isinstance(entropy.SETTINGS, dict) else ():
    if isinstance(settings, dict) and "BLOCK" in settings:
        settings["BLOCK"] = 64
reverse.SETTINGS["CHUNK"] = 64
torch.manual_seed(0)
kind, dtype = sys.argv[1], getattr(torch, sys.argv[2])
V, B, L = 301, 3, 4
graph = sf.Absorbing(V) if kind == "absorbing" else sf.Uniform(V)
x_0 = torch.randint(V, (B, L))
sigma = torch.tensor([1e-3, 0.5, 8.0])
x_t = sf.sample_transition(x_0, torch.tensor([0.5, 1.0, 3.0]), graph)
x_t[0, 0], x_0[0, 0] = (V, V - 1) if kind == "absorbing" else (0, V - 1)
scores = (2 * torch.randn(B, L, graph.dim) - 2).to(dtype)
weight = torch.rand(B, L)
weight[1, 0] = 0
upstream = torch.rand(B, L)
u = torch.rand(B, L, 2, dtype=torch.float64)
STEPS = (("analytic", 0.1), ("analytic", 0.0), ("euler", 0.01), ("denoise", None))
LAYOUTS = (
    lambda x: x,
    lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    lambda x: torch.nn.functional.pad(x, (1, 6))[..., 1:-6],
    lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
)

def run(backend, log_score):
    with sf.use_backend(backend):
        leaf = log_score.detach().requires_grad_()
        loss = sf.score_entropy(leaf, sigma, x_t, x_0, graph, row_weight=weight)
        (grad,) = torch.autograd.grad(loss, leaf, upstream.to(loss))
        once, once_grad = sf.score_entropy_with_grad(
            log_score, sigma, x_t, x_0, graph, row_weight=weight, reduction="mean"
        )
        tokens = [sf.sample_transition(x_0, sigma, graph, u=u)]
        for method, d in STEPS:
            tokens.append(sf.reverse_step(log_score, x_t, sigma, d, graph, method, u=u))
    return [loss, grad, once, once_grad], tokens

truth, tokens = run("reference", scores.double())
for layout in LAYOUTS:
    got, drawn = run("triton", layout(scores))
    for ours, true in zip(got, truth):
        # score entropies cancel: what is lost is relative to the terms, 1/E at most here
        eps = max(torch.finfo(ours.dtype).eps, 2e-6)
        error = (ours.double() - true).abs() / (true.abs() + 1e-3 * true.abs().max())
        assert float(error.max()) < 4 * eps, (layout, float(error.max()))
    for ours, true in zip(drawn, tokens):
        assert torch.equal(ours, true)

bad = x_0.clone()
bad[0, 1] = V
try:
    with sf.use_backend("triton"):
        sf.score_entropy(scores, sigma, x_t, bad, graph)
except ValueError as error:
    assert "x_0" in str(error)
else:
    raise AssertionError("a token out of range was taken")
print("as the reference")
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("graph", ["absorbing", "uniform"])
def test_kernels_agree_with_the_reference(graph: str, dtype: str):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, graph, dtype],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "as the reference" in done.stdout
