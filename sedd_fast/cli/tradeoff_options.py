"""The options of `sedd-fast tradeoff`, and the grid of settings that they name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sedd_fast.cli import options as shared
from sedd_fast.cli.manual import RARE
from sedd_fast.cli.output import creatable
from sedd_fast.cli.sampler_options import STEPS
from sedd_fast.cli.samples import ModelOrNone
from sedd_fast.names import DECODING_METHODS, METHODS, Method, Metric

if TYPE_CHECKING:
    from sedd_fast.evaluate.tradeoff import Budget

RECORD, PICTURE = "tradeoff.json", "tradeoff.png"
#: The run directories of the two networks of --demo: SEDD and the autoregressive baseline.
DEMO = (Path("runs/demo"), Path("runs/demo-ar"))
MINUTES = 5.0  # of training for each network of --demo


@dataclass(frozen=True)
class TradeoffOptions:
    """The options of `sedd-fast tradeoff`."""

    model: ModelOrNone = None
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="Files of real text to compare with; the last tenth is held out.",
            show_default="the text of the run --model",
        ),
    ] = None
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--ar",
            metavar="RUN_DIR",
            help="A run of model.kind=ar to compare with; trained as the run --model was if it "
            "does not exist.",
        ),
    ] = None
    preset: Annotated[
        Literal["small", "medium"] | None,
        typer.Option(
            metavar="NAME",
            help="Random networks instead, small or medium: times only.",
        ),
    ] = None
    demo: Annotated[
        bool,
        typer.Option(
            "--demo",
            help="Compare the network of sedd-fast demo and a baseline: "
            f"{DEMO[0]}, {DEMO[1]}, trained if missing.",
        ),
    ] = False
    minutes: Annotated[
        float | None,
        typer.Option(
            metavar="M",
            help="With --demo: minutes of training for each network.",
            show_default=f"{MINUTES:g}",
            **RARE,
        ),
    ] = None
    methods: Annotated[
        str,
        typer.Option(
            metavar="A,B,...",
            help="Samplers.",
            show_default="all but those that unmask first what the network is sure of",
        ),
    ] = ",".join(method for method in METHODS if method not in DECODING_METHODS)
    steps: Annotated[str, typer.Option(metavar="N,N,...", help=STEPS)] = "4,8,16,32,64,128,256"
    top_p: Annotated[
        str,
        typer.Option(
            metavar="P,P,...", help="Values of top-p of the autoregressive model.", **RARE
        ),
    ] = "1,0.95"
    metric: Annotated[
        Metric,
        typer.Option(
            metavar="NAME",
            help="Quality in the picture: js (n-gram divergence from held-out text), ngram (bits "
            "under a 5-gram model), entropy (of a sample's tokens) or genppl (under --judge).",
        ),
    ] = "js"
    judge: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The model that judges for genppl.", show_default="none"),
    ] = None
    num_samples: Annotated[shared.NumSamples, shared.Renamed(("--texts", "-t"))] = 64
    batch_size: Annotated[shared.BatchSize, shared.Renamed(("--batch",))] = 16
    length: shared.Length = None
    seed: Annotated[int, typer.Option(**shared.SEED, help="Random seed of every point.")] = 0
    device: shared.DeviceName = "auto"
    dtype: shared.Dtype = "float32"
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            callback=creatable,
            help=f"Directory for {RECORD} and {PICTURE}.",
            show_default="that of the run, else here",
        ),
    ] = None
    as_json: shared.Json = False

    def __post_init__(self) -> None:
        """Raise ValueError for options that do not go together."""
        if self.metric == "genppl" and self.judge is None:
            raise ValueError("--metric: genppl needs --judge NAME, such as gpt2-large")
        if self.minutes is not None and not self.demo:
            raise ValueError("--minutes: only valid with --demo; leave it out")
        sources = {"--model": self.model, "--preset": self.preset, "--demo": self.demo}
        given = [name for name, value in sources.items() if value not in (None, False)]
        if len(given) != 1:
            raise ValueError("tradeoff: give one of --model, --preset and --demo")
        if self.baseline is not None and given != ["--model"]:
            raise ValueError(
                f"--ar: {given[0]} brings a baseline of its own; leave out one of the two"
            )
        if self.preset and (self.text or self.judge):
            raise ValueError(
                "--preset: random weights have no quality to compare; leave out TEXT and --judge"
            )

    def budget(self, trained_length: int) -> "Budget":
        """How much is drawn, at the network's own length unless --length is given."""
        from sedd_fast.evaluate.tradeoff import Budget

        batch_size = min(self.batch_size, self.num_samples)
        return Budget(self.num_samples, batch_size, self.length or trained_length, self.seed)


@dataclass(frozen=True)
class Grid:
    """The settings that are measured: each method at each number of steps, each top_p."""

    methods: tuple[Method, ...]
    steps: tuple[int, ...]
    top_p: tuple[float, ...]

    @classmethod
    def of(cls, options: TradeoffOptions) -> "Grid":
        """Read --methods, --steps and --top-p; ValueError for a wrong value."""
        named = _items(options.methods)
        methods = tuple(name for name in named if name in METHODS)
        if not methods or len(methods) < len(named):
            raise ValueError(
                f"--methods: expected some of {', '.join(METHODS)}, got {options.methods!r}"
            )
        steps = _numbers("--steps", options.steps, int, shared.MOST)
        return cls(methods, steps, _numbers("--top-p", options.top_p, float, 1))


def _items(listed: str) -> list[str]:
    return [item.strip() for item in listed.split(",") if item.strip()]


def _numbers(option: str, listed: str, kind: Callable[[str], Any], most: int) -> tuple[Any, ...]:
    try:
        numbers = tuple(kind(item) for item in _items(listed))
    except ValueError:
        raise ValueError(
            f"{option}: expected numbers with commas between them, got {listed!r}"
        ) from None
    if not numbers or not all(0 < number <= most for number in numbers):
        raise ValueError(f"{option}: expected positive numbers up to {most:,}, got {listed!r}")
    return numbers
