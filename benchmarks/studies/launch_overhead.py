"""Microseconds that an eager call spends in Python before its kernel runs, part by part.

    python -m benchmarks.studies.launch_overhead                  # needs no GPU
    python -m benchmarks.studies.launch_overhead --device cuda    # on a GPU, nothing is replaced

Every operation runs on a few positions, on the Triton backend. Without a GPU the tensors are on the
CPU, the registry allows the backend there, values are not checked, as on CUDA, and Triton's driver
is replaced: kernels are compiled for sm_90, and the launch itself does nothing. This times all of
Python's work, and all of Triton's but its C launcher. Conversions for which a GPU would launch a
kernel (of a float32 noise level to float64) cost a microsecond or two here, and more on a GPU.

The time of a part is what a call saves when the part does nothing, from the inside out. The fastest
of many batches of calls counts, since other processes slow the rest. The line of the CUDA
backend leaves out its launch and the device guard.
"""

import argparse
import contextlib
import gc
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.harness.cases import Call
from benchmarks.harness.command import make_parser, output_file, positive_int, write_json

BATCH, LENGTH, VOCAB = 2, 4, 50
#: The parts that are replaced one after the other, from the inside out.
PARTS = ("Triton's run", "launcher", "backend", "operator", "checks")


class Launcher:
    """In place of Triton's launcher of a compiled kernel."""

    def __init__(self, *_: object) -> None: ...

    def __call__(self, *_: object) -> None: ...


class Driver:
    """In place of Triton's driver: one sm_90 GPU on which nothing runs."""

    launcher_cls = Launcher

    def __init__(self) -> None:
        from triton.backends.compiler import GPUTarget

        self.utils, self.target = self, GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self.target

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 << 10}

    def load_binary(self, *_: object) -> tuple[int, ...]:
        return 1, 1, 32, 0, 1024  # module, function, registers, spills, threads


def _no(*args: object, **options: object) -> None:
    """Do nothing, at the cost of a call; a mock would take longer than what it replaces."""


@contextlib.contextmanager
def pretended(device: str) -> Iterator[None]:
    """The Triton backend as if the CPU were its GPU."""
    if device == "cuda":
        yield
        return
    import triton

    from sedd_fast.backends import registry, values
    from sedd_fast.backends import triton as backend

    triton.runtime.driver.set_active(Driver())
    with (
        mock.patch.object(backend, "devices", return_value=("cuda", "cpu")),
        mock.patch.object(values, "enabled", _no),
        mock.patch.dict(registry.PREFERENCE, cpu=registry.PREFERENCE["cuda"]),
    ):
        yield


def calls(device: str) -> dict[str, Call]:
    """The operations as training and sampling call them, noise and weights in float32."""
    import sedd_fast as sf

    torch.manual_seed(0)
    graph = sf.Absorbing(VOCAB)
    on: dict[str, Any] = {"device": device}
    x_0 = torch.randint(VOCAB, (BATCH, LENGTH), **on)
    x_t = torch.where(torch.rand(BATCH, LENGTH, **on) < 0.5, VOCAB, x_0)
    scores = torch.randn(BATCH, LENGTH, graph.dim, **on)
    leaf = scores.clone().requires_grad_()
    sigma, weight = torch.rand(BATCH, 1, **on), torch.rand(BATCH, LENGTH, **on)
    u = torch.rand(BATCH, LENGTH, 2, dtype=torch.float64, **on)
    entropy = (sigma, x_t, x_0, graph, weight)
    exact = (sigma.double(), x_t, x_0, graph, weight.double())  # nothing to convert

    def backward() -> object:
        return torch.autograd.grad(sf.score_entropy(leaf, *entropy, "sum"), leaf)

    return {
        "score_entropy": lambda: sf.score_entropy(scores, *entropy),
        "score_entropy, float64 noise and weight": lambda: sf.score_entropy(scores, *exact),
        "score_entropy, recording": lambda: sf.score_entropy(leaf, *entropy),
        "score_entropy and backward": backward,
        "score_entropy_with_grad": lambda: sf.score_entropy_with_grad(scores, *entropy),
        "reverse_step": lambda: sf.reverse_step(scores, x_t, sigma, sigma, graph, u=u),
        "sample_transition": lambda: sf.sample_transition(x_0, sigma, graph, u=u),
        "row_sums": lambda: sf.row_sums(scores, x_t, x_0, graph, "affine"),
    }


def operation(name: str) -> str:
    """The operation of the call with that name."""
    return name.split(",")[0].split(" ")[0]


def peeled(name: str, call: Call) -> Iterator[Call]:
    """The call as it is, then with one part after another replaced by nothing."""
    from triton.runtime.jit import JITFunction

    from sedd_fast.backends import triton as backend

    op = operation(name)
    public = importlib.import_module(f"sedd_fast.ops.{op.removesuffix('_with_grad')}")
    kernel = importlib.import_module(f"sedd_fast.kernels.{op.removesuffix('_with_grad')}")
    kept: dict[str, Any] = {}

    def keeping(where: Any, what: str) -> Any:
        """A function that returns the result of one real call every time."""
        true = getattr(where, what)

        def run(*args: Any) -> Any:
            kept[what] = true(*args)
            return kept[what]

        with mock.patch.object(where, what, run):
            call()
        return lambda *args: kept[what]

    fixed_op = keeping(public, f"{op}_op")
    nothing = [
        (JITFunction, "run", _no),
        (kernel, "launch", _no),
        (backend, op, None),
        (public, f"{op}_op", fixed_op),
    ]
    yield call
    with contextlib.ExitStack() as stack:
        for where, what, empty in nothing:
            if empty is None:  # results must be new tensors: the operator owns what it returns
                like = keeping(where, what)()
                empty = copying(like)
            stack.enter_context(mock.patch.object(where, what, empty))
            yield call


def copying(like: Any) -> Callable[..., Any]:
    """A function that returns new tensors of the same shape and dtype."""
    if isinstance(like, tuple):
        return lambda *args: tuple(torch.empty_like(one) for one in like)
    return lambda *args: torch.empty_like(like)


def microseconds(call: Call, batches: int, clock: Callable[[], int]) -> float:
    """The time of a call, in the fastest of some batches of a hundred calls."""
    for _ in range(50):
        call()
    found = []
    for _ in range(batches):
        start = clock()
        for _ in range(100):
            call()
        found.append((clock() - start) / 100e3)
    return min(found)


def measure(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """For each call its time, and those of its parts where it is one operation without backward."""
    clock = time.perf_counter_ns if args.device == "cuda" else time.thread_time_ns
    found: dict[str, dict[str, float]] = {}
    with pretended(args.device):
        for name, call in calls(args.device).items():
            whole = "recording" in name or "backward" in name
            steps = [call] if whole else peeled(name, call)
            times = [microseconds(each, args.batches, clock) for each in steps]
            found[name] = {"whole": times[0]}
            if not whole:
                spent = (a - b for a, b in zip(times, [*times[1:], 0.0], strict=True))
                found[name] |= dict(zip(PARTS, spent, strict=True))
            show(name, found[name])
        if why := adapter_missing(args.device):
            print(f"CUDA backend: left out, {why}")
        else:
            found["CUDA backend, score_entropy"] = {"whole": adapter(args, clock)}
            show("CUDA backend, score_entropy", found["CUDA backend, score_entropy"])
    return found


def adapter_missing(device: str) -> str | None:
    """Why the adapter of the CUDA backend cannot be timed, or None."""
    try:
        importlib.import_module("sedd_fast._cuda")
    except ImportError as error:
        return str(error)
    return None


def adapter(args: argparse.Namespace, clock: Callable[[], int]) -> float:
    """Microseconds of score_entropy on the CUDA backend without its launch."""
    import sedd_fast as sf
    from sedd_fast.backends import cuda

    call = calls(args.device)["score_entropy"]
    with (
        mock.patch.object(cuda, "devices", return_value=("cuda", "cpu")),
        mock.patch.object(cuda, "unavailable", return_value=None),
        mock.patch.object(cuda, "_launch", _no),
        sf.use_backend("cuda"),
    ):
        return microseconds(call, args.batches, clock)


def show(name: str, times: dict[str, float]) -> None:
    """Print the times of one call."""
    parts = "  ".join(f"{part} {times[part]:5.1f}" for part in PARTS if part in times)
    print(f"{name:40} {times['whole']:6.1f} us  {parts}", flush=True)


def main(argv: list[str]) -> int:
    """Run the command; its exit status."""
    parser = make_parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(%(default)s)")
    parser.add_argument(
        "--batches", type=positive_int, default=200, help="batches of 100 calls (%(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", type=output_file, help="write the figures")
    args = parser.parse_args(argv)
    os.environ.pop("TRITON_INTERPRET", None)
    torch.set_num_threads(1)
    gc.disable()
    import sedd_fast

    print(f"sedd_fast of {Path(sedd_fast.__file__).parents[1].name}, torch {torch.__version__}")
    found = measure(args)
    if args.json:
        write_json(args.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
