"""The variance of likelihood bounds at equal numbers of network rows, against LLaDA's estimator.

    python -m benchmarks.studies.bound_variance                  # half an hour on two cores
    python -m benchmarks.studies.bound_variance --cases 8/128 --repeats 50

The network is the model in the package, the text Python's own help. A case A/W is an answer of the
last A tokens of a window of W, given the others as a prompt; W/W is a whole block. The network gets
the noise level of the share of masks in the answer, so that it is a function of the masked text
alone, as LLaDA's is: answers of up to 10 tokens are read from a table of all their masks, and
repeated ten times as often.

LLaDA's ``get_log_likelihood`` (Nie et al. 2025, arXiv 2502.09992) reads batches of b = 32 rows. In
a batch the numbers of masks are evenly spaced from a uniform k in 1 .. L, modulo L, the masked
positions are independent of those of other rows, and the estimate is the mean of
(L / n) * (sum of the cross entropies at the n masks). Estimates of several batches are means of
independent ones: the variance with 128 rows is a quarter of that with 32, which is measured.

The study prints standard deviations in nats and the ratio of variances, LLaDA's over each, +- its
standard error; with several texts, of the sums over texts.
"""

import argparse
import math
import pydoc
import sys
from typing import Any

import torch
from torch import Tensor

import sedd_fast as sf
from benchmarks.harness.command import make_parser, output_file, positive_int, write_json
from benchmarks.harness.environment import provenance
from sedd_fast.evaluate import TIMES
from sedd_fast.models.cross_entropy import CrossEntropyRequest
from sedd_fast.models.interface import answer as answered
from sedd_fast.process.graphs import Absorbing

MODULES = ("argparse", "json", "random", "csv", "threading", "decimal", "logging", "socket")
FEW, MANY = 32, 128  # rows of a batch of LLaDA's, and of its whole estimate
_TABLE = 10  # tokens of the longest answer of which all masks are read beforehand


class Answer:
    """The network as one of the answer alone, over two tokens: the answer's own, 0, and any other.

    ``x_t (R, A) -> log posterior (R, A, 2)``; the answer is a sequence of zeros.
    """

    graph = Absorbing(2)

    def __init__(self, network: Any, window: Tensor, length: int) -> None:
        self.network, self.window = network, window
        self.x_0 = torch.zeros(length, dtype=torch.int64)
        self.table: Tensor | None = None
        if length <= _TABLE:
            code = torch.arange(2**length)
            masked = (code[:, None] >> torch.arange(length)) % 2 == 1
            self.table = torch.cat([self._read(rows) for rows in masked.split(64)])

    def nats(self, masked: Tensor) -> Tensor:
        """The cross entropies of masked tokens, 0 elsewhere: (R, A) bool -> (R, A) float64."""
        if self.table is None:
            return self._read(masked)
        return self.table[(masked << torch.arange(masked.shape[1])).sum(1)]

    def __call__(self, x_t: Tensor) -> Tensor:
        own = -self.nats(x_t == self.graph.mask_index)
        return torch.stack([own, torch.log(-torch.expm1(own.clamp(max=-1e-12)))], -1)

    def _read(self, masked: Tensor) -> Tensor:
        share = masked.double().mean(1).clamp(1e-3, 0.999)
        noised = torch.nn.functional.pad(masked, (len(self.window) - masked.shape[1], 0))
        x_0 = self.window.expand(noised.shape)
        x_t = torch.where(noised, self.network.graph.mask_index, x_0)
        request = CrossEntropyRequest(x_0, noised.double())
        sigma = -torch.log1p(-share).float()
        nats = answered(self.network, self.network.graph, x_t, sigma, request, None)
        return nats[:, -masked.shape[1] :].double()


def llada(answer: Answer, repeats: int, generator: torch.Generator) -> Tensor:
    """LLaDA's estimates of -log p(answer | prompt) from a batch of 32 rows each: (repeats,)."""
    length, found = len(answer.x_0), []
    for _ in range(repeats):
        k = torch.randint(1, length + 1, (1,), generator=generator).item()
        n = torch.linspace(k, k + (FEW - 1) * length / FEW, FEW).round().long()
        n = ((n - 1) % length + 1)[:, None]
        rank = torch.rand(FEW, length, generator=generator).argsort(-1).argsort(-1)
        found.append((answer.nats(rank < n) * length / n).sum(-1).mean())
    return torch.stack(found)


def ours(answer: Answer, repeats: int, rows: int, times: Any, generator: Any) -> Tensor:
    """Estimates of `likelihood_bound` from as many rows: (repeats,)."""
    model = sf.PosteriorModel(answer, answer.graph, takes_sigma=False)
    bound = sf.likelihood_bound(
        model, answer.x_0.expand(repeats, -1).contiguous(), answer.graph, sf.LogLinearNoise(),
        rows, "normalised", generator, 64, times=times,
    )  # fmt: skip
    return bound.nats


def spread(values: list[Tensor]) -> tuple[float, float]:
    """The variance of the sum of independent estimates, and its relative standard error."""
    deviations = [(one - one.mean()).square() for one in values]
    variance = sum(float(one.var()) for one in values)
    error = math.hypot(*(float(one.std()) / math.sqrt(len(one)) for one in deviations))
    return variance, error / variance


@torch.no_grad()
def measure(case: str, texts: int, repeats: int, network: Any, tokenizer: Any) -> list[Any]:
    """The rows of a case."""
    length, window = (int(part) for part in case.split("/"))
    answers = []
    for name in MODULES[:texts]:
        tokens = torch.tensor(tokenizer.encode(pydoc.plain(pydoc.render_doc(name))))
        middle = len(tokens) // 2
        answers.append(Answer(network, tokens[middle : middle + window].long(), length))
    repeats = repeats if length > _TABLE else 10 * repeats
    generator = torch.Generator().manual_seed(0)
    base, error = spread([llada(answer, repeats, generator) for answer in answers])
    rows = []

    def show(estimator: str, of_rows: int, variance: float, own_error: float) -> None:
        against = base * FEW / of_rows
        ratio = against / variance
        off = ratio * math.hypot(error, own_error)
        rows.append({
            "case": case, "rows": of_rows, "estimator": estimator, "deviation": variance**0.5,
            "llada": against**0.5, "ratio": ratio, "ratio_stderr": off,
        })  # fmt: skip
        figures = f"{against**0.5:10.3f}{variance**0.5:12.3f}{ratio:9.2f} +- {off:.2f}"
        print(f"{case:10}{of_rows:6}  {estimator:12}{figures}", flush=True)

    for times, of_rows in [(times, FEW) for times in TIMES] + [("balanced", MANY)]:
        nats = [ours(answer, repeats, of_rows, times, generator) for answer in answers]
        show(times, of_rows, *spread(nats))
    return rows


def main() -> int:
    """Run the command; its exit status."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--cases", type=cases, default=cases("8/128,32/32,32/64,128/128"), metavar="A/W,...",
        help="answers and windows (8/128,32/32,32/64,128/128)",
    )  # fmt: skip
    parser.add_argument("--texts", type=positive_int, default=1, help="texts (%(default)s)")
    parser.add_argument("--repeats", type=positive_int, default=200, help="(%(default)s)")
    parser.add_argument("--json", metavar="FILE", type=output_file, help="write the figures")
    args = parser.parse_args()
    if args.texts > len(MODULES):
        parser.error(f"--texts: expected at most {len(MODULES)}, got {args.texts}")
    model = sf.load().network
    print(f"{'case':10}{'rows':>6}  {'times':12}{'LLaDA':>10}{'deviation':>12}{'ratio':>9}")
    rows = []
    for case in args.cases:
        rows += measure(case, args.texts, args.repeats, model.model.eval(), model.tokenizer)
    if args.json:
        write_json(args.json, {"environment": provenance(), "rows": rows})
    return 0


def cases(text: str) -> list[str]:
    """The cases of a list with commas."""
    for case in text.split(","):
        answer, _, window = case.partition("/")
        if not (answer.isdigit() and window.isdigit() and 1 <= int(answer) <= int(window) <= 128):
            raise argparse.ArgumentTypeError(
                f"expected an answer's and a window's tokens, such as 8/128, got {case!r}"
            )
    return text.split(",")


if __name__ == "__main__":
    sys.exit(main())
