"""The choice of a chunk of a row in a draw, where the uniform lies on a chunk's boundary."""

import pytest
import torch

from sedd_fast.backends import registry

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from sedd_fast.kernels.chunks import chosen_chunk  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    registry.unavailable("triton", DEVICE) is not None, reason="needs a GPU or the interpreter"
)
CHUNKS, ROWS = 128, 20


@triton.jit
def _choose(sums, u, chosen, share, count, NUMBER: tl.constexpr):
    row = tl.program_id(0)
    weights = tl.load(sums + row * NUMBER + tl.arange(0, NUMBER))
    for i in range(row * count, (row + 1) * count):
        chunk, far = chosen_chunk(weights, 0.0, tl.load(u + i))
        tl.store(chosen + i, chunk)
        tl.store(share + i, far)


def test_a_uniform_at_a_boundary_never_gives_a_negative_rest():
    """The chunk sums differ so much in size that their order of addition changes the result."""
    generator = torch.Generator().manual_seed(0)
    sums = torch.randn(ROWS, CHUNKS, generator=generator, dtype=torch.float64).mul(8).exp()
    u = (sums.cumsum(-1)[:, 90:-1] / sums.sum(-1, keepdim=True)).clamp(max=1 - 2**-53)
    chosen = torch.zeros(u.shape, dtype=torch.int32, device=DEVICE)
    share = torch.zeros(u.shape, dtype=torch.float64, device=DEVICE)
    _choose[(ROWS,)](sums.to(DEVICE), u.contiguous().to(DEVICE), chosen, share, u.shape[1], CHUNKS)
    assert int(chosen.min()) >= 0
    assert float(share.min()) >= 0
