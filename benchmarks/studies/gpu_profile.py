"""Ceilings of this GPU, and the kernels in which the head and a network spend their time.

    python -m benchmarks.studies.gpu_profile --json profile.json
    python -m benchmarks.studies.gpu_profile --device cpu --quick    # does it run?

Three parts:

- bandwidth of a copy (bytes read and written), of a fill and of a read, in TB/s;
- TFLOP/s of a head's three products by the number of states: cuBLAS forms products of an odd
  number several times more slowly;
- by torch's profiler, microseconds and launches of every kernel of a loss with gradients and of a
  step of SEDD-small's head, and of the network's body for 1 and 32 sequences of 1,024 tokens.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import sedd_fast as sf
from benchmarks.harness.cases import autocast
from benchmarks.harness.command import gpu_parser, lacks_gpu, write_json
from benchmarks.harness.config import BenchmarkConfig
from benchmarks.harness.measuring import Meter, make_meter, median_ms
from benchmarks.studies.largest_batch import network
from benchmarks.suites.head import HeadProblem, make_head

#: Elements of the tensors whose bandwidth is measured, and states of the products.
ELEMENTS = 8192 * 50258
STATES = (5201, 5632, 11264, 16896, 25088, 50257, 50304)
#: Kernels of a profile that are printed.
SHOWN = 8


def milliseconds(meter: Meter, call: Callable[[], object]) -> float:
    """The median of a few calls, after two to warm up."""
    call()
    call()
    return median_ms(meter, call)


def bandwidth(meter: Meter, device: str, elements: int) -> dict[str, float]:
    """TB/s of a copy, a fill and a read of bf16 numbers."""
    source = torch.empty(elements, dtype=torch.bfloat16, device=device).normal_()
    target = torch.empty_like(source)
    calls = {"copy": lambda: target.copy_(source), "fill": target.zero_, "read": source.sum}
    moved = {"copy": 4 * elements, "fill": 2 * elements, "read": 2 * elements}
    return {name: moved[name] / milliseconds(meter, call) / 1e9 for name, call in calls.items()}


def products(meter: Meter, p: HeadProblem, states: int) -> dict[str, float]:
    """TFLOP/s of the products of the masked rows with that many states, in rows of whole tiles."""
    h, weight = p.touched(), p.weight.detach()
    if states > len(weight):
        weight = torch.cat((weight, weight[: states - len(weight)]))
    weight = weight[:states].contiguous()
    scores = h.new_empty(len(h), -(-states // 256) * 256).normal_()[:, :states]
    made = torch.empty_like(weight)
    calls: dict[str, Callable[[], object]] = {
        "gradient of hidden": lambda: torch.mm(scores, weight),
        "gradient of weight": lambda: torch.mm(scores.T, h, out=made),
        "scores": lambda: torch.mm(h, weight.T, out=scores),
    }
    operations = 2 * h.numel() * states
    return {name: operations / milliseconds(meter, call) / 1e9 for name, call in calls.items()}


def kernels(call: Callable[[], object]) -> list[dict[str, Any]]:
    """Every kernel of a call, the longest first."""
    call()
    call()
    on_gpu = torch.cuda.is_available()
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as seen:
        call()
        if on_gpu:
            torch.cuda.synchronize()
    found = [
        {
            "kernel": event.key[:200],
            "us": event.self_device_time_total if on_gpu else event.self_cpu_time_total,
            "launches": event.count,
        }
        for event in seen.key_averages()
    ]
    return sorted((one for one in found if one["us"]), key=lambda one: -one["us"])


def profiled(
    p: HeadProblem, device: str, quick: bool
) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is profiled, by name; each is made when it is due."""
    inputs = (p.sigma, p.x_t, p.x_0, p.graph)

    def loss() -> object:
        found = sf.linear_score_entropy(
            *p.leaves, *inputs, row_weight=p.row_weight, reduction="sum", rows=p.rows()
        )
        return torch.autograd.grad(found, p.leaves)

    @torch.no_grad()
    def step() -> object:
        return sf.linear_reverse_step(*p.leaves, p.x_t, p.sigma, p.removed, p.graph, rows=p.rows())

    yield "head, loss with gradients", loss
    yield "head, step", step
    model = sf.SEDD(network(quick)).to(device).eval()
    for batch in (1,) if quick else (1, 32):
        x_t = torch.full((batch, model.config.length), model.graph.vocab_size, device=device)
        sigma = torch.ones(batch, device=device)

        def body(x_t: torch.Tensor = x_t, sigma: torch.Tensor = sigma) -> object:
            with torch.no_grad(), autocast(x_t.device, "bf16"):
                return model.features(x_t, sigma)

        yield f"body of SEDD-small, {batch} x {model.config.length:,} tokens", body


def lines_of(record: dict[str, Any]) -> list[str]:
    """The record as lines."""
    rates = ", ".join(f"{name} {value:.2f}" for name, value in record["bandwidth"].items())
    lines = [f"TB/s: {rates}"]
    for states, of in record["products"].items():
        lines.append(
            f"TFLOP/s, {states} states: {', '.join(f'{n} {v:.0f}' for n, v in of.items())}"
        )
    for name, found in record["profiles"].items():
        total, count = sum(one["us"] for one in found), sum(one["launches"] for one in found)
        top = "; ".join(f"{one['us']:.0f} {one['kernel'][:40]}" for one in found[:SHOWN])
        lines.append(f"{name}: {total:.0f} us, {count} launches: {top}")
    return lines


def main() -> int:
    """Run the command; its exit status."""
    parser = gpu_parser(__doc__)
    args = parser.parse_args()
    if lacks_gpu(args):
        return 2
    config = BenchmarkConfig(device=args.device, positions=8192, hidden_size=768)
    states, elements = STATES, ELEMENTS
    if args.quick:
        config = BenchmarkConfig(device=args.device, positions=64, hidden_size=32, vocab_size=97)
        states, elements = (64, 97, 128), 4096
    meter = make_meter(torch.device(args.device), evict=not args.quick)
    problem = make_head(config, config.positions, config.hidden_size, torch.bfloat16)
    record: dict[str, Any] = {
        "bandwidth": bandwidth(meter, args.device, elements),
        "products": {n: products(meter, problem, n) for n in states},
        "profiles": {},
    }
    for name, call in profiled(problem, args.device, args.quick):
        record["profiles"][name] = kernels(call)
        if args.json:
            write_json(args.json, record | {"lines": lines_of(record)})
    print("\n".join(lines_of(record)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
