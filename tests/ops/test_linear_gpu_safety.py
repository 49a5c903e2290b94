"""Bad values in the linear-head operations on a GPU: memory-safe; other rows stay unaffected."""

from dataclasses import replace

import pytest
import torch

import sedd_fast as sf
from helpers.head_cases import Head, make_head, run
from helpers.op_cases import Backend, gpu_backends, graph_id

FAR = 2**62
pytestmark = [
    pytest.mark.parametrize("gpu", gpu_backends("triton"), ids=str, indirect=True),
    pytest.mark.operation("linear_score_entropy"),
]
by_graph = pytest.mark.parametrize("graph", [sf.Absorbing(11), sf.Uniform(11)], ids=graph_id)
BAD_ENTROPY = (
    *(("x_t", -1), ("x_t", FAR), ("x_0", -1), ("x_0", FAR)),
    *(("sigma", value) for value in (0.0, torch.nan, torch.inf)),
)
BAD_STEP = (
    *(("x_t", -1), ("x_t", FAR), ("sigma", torch.nan), ("sigma", torch.inf)),
    *(("dsigma", -1.0), ("dsigma", torch.nan), ("u", 1.0), ("u", torch.nan)),
)


def heads(
    gpu: Backend, graph: sf.Graph, name: str, value: float
) -> tuple[Head, Head, torch.Tensor]:
    """A head with a loss at every position, the same with a bad value, and the rows with it."""
    head = make_head(graph, graph.kind == "absorbing", shape=(2, 3), device=gpu.device)
    i = replace(head.inputs, row_weight=torch.ones_like(head.inputs.row_weight))
    if graph.mask_index is not None:
        i = replace(i, x_t=torch.full_like(i.x_t, graph.mask_index))
    changed, rows = getattr(i, name).clone(), torch.zeros_like(i.x_t, dtype=torch.bool)
    at = (1,) if "sigma" in name else (1, 2)
    changed[at], rows[at] = value, True
    return replace(head, inputs=i), replace(head, inputs=replace(i, **{name: changed})), rows


@by_graph
@pytest.mark.parametrize(("name", "value"), BAD_ENTROPY)
def test_a_bad_row_has_a_nan_loss_and_no_gradient(gpu: Backend, graph, name, value):
    """That holds also where exp overflows only with the weight of the row: infinity times 0."""
    pair = heads(gpu, graph, name, value)
    rows, results = pair[2], []
    listed = sf.touched_rows(pair[0].inputs.x_t, graph)
    for head in pair[:2]:
        bias = head.bias.clone()
        bias[3] = 95.0
        weighted = replace(head.inputs, row_weight=torch.where(rows, 1.0, 1e-6).double())
        results.append(run(replace(head, bias=bias, inputs=weighted), rows=listed))
    good, bad = results
    assert bool(bad.loss[rows].isnan().all())
    assert not bool(bad.hidden[rows].any())
    assert bool(bad.weight.isfinite().all())
    assert bool(good.loss[~rows].isfinite().all())
    assert torch.equal(bad.loss[~rows], good.loss[~rows])
    torch.testing.assert_close(bad.hidden[~rows], good.hidden[~rows], rtol=1e-6, atol=0)


@by_graph
@pytest.mark.parametrize(("name", "value"), BAD_STEP)
def test_a_bad_row_keeps_its_token(gpu: Backend, graph, name, value):
    good, bad, rows = heads(gpu, graph, name, value)
    method = "analytic" if graph.kind == "absorbing" else "euler"
    listed = sf.touched_rows(good.inputs.x_t, graph)
    tokens, expected = bad.step(method, rows=listed), good.step(method, rows=listed)
    assert torch.equal(tokens[rows], bad.inputs.x_t[rows])
    assert torch.equal(tokens[~rows], expected[~rows])


@by_graph
@pytest.mark.parametrize("low", [-torch.inf, -1e31])
def test_a_row_without_any_weight_keeps_its_token(gpu: Backend, graph, low):
    """States that a tile has beyond the vocabulary are never drawn."""
    dtype = torch.float32 if gpu.interpreted else torch.bfloat16
    head = make_head(graph, False, dtype, (2, 3), device=gpu.device)
    head = replace(head, bias=torch.full_like(head.bias, low))
    assert torch.equal(
        head.step("euler" if graph.mask_index is None else "denoise"), head.inputs.x_t
    )
