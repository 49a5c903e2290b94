"""Rows for sedd_fast/backends/choices.py, from the suites "sweep" and "head" on a GPU.

    python benchmarks/run.py --device cuda --suite sweep,head --dtype bf16,fp32 --json sweep.json
    python -m benchmarks.studies.choices sweep.json

A row names the backend that is faster than the registry's first one by more than MARGIN, for an
operation, a graph, a dtype and a range of vocabularies. A measured vocabulary stands for those up
to half way (geometrically) to the next one; the one head that is measured stands for every head.
"""

import itertools
import math
from collections import defaultdict
from typing import Any

from benchmarks.harness.command import make_parser, read_json
from benchmarks.harness.config import DTYPES
from sedd_fast.backends import registry
from sedd_fast.backends.choices import Choice

#: Differences up to this fraction are measurement noise.
MARGIN = 0.05
#: (the case, without its graph; the form of the call) -> the operation whose backend it decides.
DECIDES = {
    ("loss + gradient", "autograd"): "score_entropy",
    ("loss + gradient", "one pass"): "score_entropy_with_grad",
    ("analytic step", ""): "reverse_step",
}
#: The same for the head, whose graph is the absorbing one.
DECIDES_HEAD = {
    ("head, loss + gradients", "fused"): "linear_score_entropy_with_grad",
    ("head, loss + gradients", "fused, none"): "linear_score_entropy",
    ("head, analytic step", "fused"): "linear_reverse_step",
}


def rows(results: dict[str, Any]) -> list[Choice]:
    """The rows that follow from the results.

    Raises:
        SystemExit: the results are not from a GPU.
    """
    capability = results["environment"]["capability"]
    if capability is None:
        raise SystemExit("no choices: these results are not from a GPU (--device cuda)")
    made = []
    for (op, graph, dtype), times in sorted(measured(results).items()):
        states = sorted(times)
        ends = [math.isqrt(a * b) for a, b in itertools.pairwise(states)]
        bounds = zip([0, *(end + 1 for end in ends)], [*ends, None], strict=True)
        for at, (least, most) in zip(states, bounds, strict=True):
            if (best := winner(times[at])) is not None:
                made.append(Choice(tuple(capability), op, graph, dtype, least, most, best))
    return merged(made)


def measured(results: dict[str, Any]) -> dict[tuple[str, str, str], dict[int, dict[str, float]]]:
    """(operation, graph, dtype) -> states (0 for the head) -> backend -> milliseconds."""
    found: dict[Any, Any] = defaultdict(lambda: defaultdict(dict))
    for row in results["results"]:
        if row["suite"] not in ("vocabulary", "head") or row["kind"] != "ours":
            continue
        _, backend, *form = row["implementation"].split(", ")
        if row["suite"] == "head":
            graph, states = "absorbing", 0
            op = DECIDES_HEAD.get((row["operation"], ", ".join(form)))
        else:
            graph, _, case = row["operation"].partition(" ")
            states = int(row["at"]) + (graph == "absorbing")
            op = DECIDES.get((case, "".join(form)))
        if op is not None:
            key = (op, graph, str(DTYPES[row["dtype"]]).removeprefix("torch."))
            found[key][states][backend] = row["regimes"]["cuda"]["median_ms"]
    return found


def winner(times: dict[str, float]) -> str | None:
    """The fastest backend, or None where it is the registry's first or faster by noise only."""
    first = next(name for name in registry.preference("cuda") if name in times)
    best = min(times, key=times.__getitem__)
    return best if times[best] < (1 - MARGIN) * times[first] else None


def merged(made: list[Choice]) -> list[Choice]:
    """The rows, with neighbouring ranges of one backend joined."""
    joined: list[Choice] = []
    for row in made:
        before = joined[-1] if joined else None
        if before and before == row._replace(least=before.least, most=row.least - 1):
            joined[-1] = before._replace(most=row.most)
        else:
            joined.append(row)
    return joined


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("results", metavar="FILE", help="what run.py --json wrote")
    for choice in rows(read_json(parser.parse_args().results)):
        print(f"    Choice{tuple(choice)!r},")
