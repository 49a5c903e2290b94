"""Every kind of call of the row kernels on one backend, on random tensors or tensors of "meta"."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.harness.config import DTYPES
from sedd_fast.backends import registry
from sedd_fast.backends.inputs import NO_MASK, EntropyInputs, ReverseInputs, RowSumInputs

SHAPE = (8, 1024)
MASKED = 0.35
#: Two vocabularies: that of GPT-2, and one of which a single warp reads a row.
LARGE, SMALL = 50257, 1000


@dataclass(frozen=True)
class RowCall:
    """One kind of call: what is launched, on which graph, dtype and vocabulary."""

    form: str
    graph: str
    dtype: str
    vocab: int

    @property
    def size(self) -> int:
        """Bytes of a score."""
        return DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        return f"{self.graph} {self.form}, {self.dtype}, {self.vocab}"


FORMS = ("loss", "gradient", "step", "sums", "sums gradient")


def all_calls() -> Iterator[RowCall]:
    """All calls, the most important first: where time runs out, the rest keeps its settings."""
    for vocab, dtype in ((LARGE, "bf16"), (LARGE, "fp32"), (SMALL, "bf16")):
        for form in FORMS:
            for graph in ("absorbing", "uniform") if "sums" not in form else ("uniform",):
                yield RowCall(form, graph, dtype, vocab)


def call_of(case: RowCall, device: str, name: str = "triton") -> Callable[[], object]:
    """The call on a backend, on random tensors; on the device "meta" they have no memory."""
    backend = registry.module(name)
    scores, tokens = operands(case, device)
    x_0 = tokens["x_0"]
    sigma = torch.full(SHAPE[:1], 0.7, dtype=torch.float64, device=device)
    weight = torch.ones(SHAPE, dtype=torch.float64, device=device)
    process = (case.graph, case.vocab, case.vocab if case.graph == "absorbing" else NO_MASK)
    entropy = EntropyInputs(sigma, tokens["x_t"], x_0, weight, *process)
    reverse = ReverseInputs(tokens["x_t"], sigma, sigma * 0.02, tokens["u"], *process, "analytic")
    sums = RowSumInputs(tokens["x_t"], x_0, weight, weight, "affine", *process)
    calls: dict[str, Callable[[], object]] = {
        "loss": lambda: backend.score_entropy(scores, entropy),
        "gradient": lambda: backend.score_entropy_with_grad(scores, entropy, 1.0),
        "step": lambda: backend.reverse_step(scores, reverse),
        "sums": lambda: backend.row_sums(scores, sums),
        "sums gradient": lambda: backend.row_sums_backward(weight, weight, scores, sums),
    }
    return calls[case.form]


def operands(case: RowCall, device: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Scores, and tokens of which the fraction MASKED is noised."""
    dim = case.vocab + (case.graph == "absorbing")
    scores = torch.empty((*SHAPE, dim), dtype=DTYPES[case.dtype], device=device)
    x_0 = torch.zeros(SHAPE, dtype=torch.int64, device=device)
    x_t, u = x_0.clone(), torch.empty((*SHAPE, 2), dtype=torch.float64, device=device)
    if device != "meta":
        scores.normal_(-8 if case.graph == "absorbing" else 0, 1.5)
        x_0.random_(case.vocab)
        u.uniform_()
        other = case.vocab if case.graph == "absorbing" else (x_0 + 1) % case.vocab
        x_t = torch.where(torch.rand(SHAPE, device=device) < MASKED, other, x_0)
    return scores, {"x_t": x_t, "x_0": x_0, "u": u}
