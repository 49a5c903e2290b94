"""Training, seen live on a terminal; a plain line every ten seconds elsewhere. All on stderr."""

from __future__ import annotations

import time
from collections import deque
from itertools import pairwise
from types import TracebackType

from rich.box import ROUNDED
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sedd_fast.cli.output import progress
from sedd_fast.train.progress import HeldOut, StepInfo

_LINE_SECONDS, _FRAME_SECONDS = 10.0, 0.2
_STEPS_AVERAGED = 50  # one batch's loss says little: its noise levels are drawn anew each time
_BARS = "▁▂▃▄▅▆▇█"


class TrainingDisplay:
    """A context manager to hand to `train` as `on_step`.

    Example:
        >>> with TrainingDisplay("runs/book") as display:
        ...     train(config, on_step=display)
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.title, self.console = title, console or progress()
        self._losses: deque[float] = deque(maxlen=_STEPS_AVERAGED)
        self._curve: list[float] = []
        self._last: StepInfo | None = None  # the newest step, where it is not shown yet
        self._next = 0.0  # when to show again, on the monotonic clock
        self._live: Live | None = None

    def __enter__(self) -> TrainingDisplay:
        if self.console.is_terminal:
            waiting = Text("reading the text, building the model ...", style="dim")
            self._live = Live(self._framed(waiting), console=self.console, auto_refresh=False)
            self._live.start(refresh=True)
        else:
            self._print(f"training {self.title}: reading the text ...")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._last is not None:
            self._show(self._last)
        if self._live is not None:
            self._live.stop()

    def __call__(self, info: StepInfo) -> None:
        """After each step."""
        self._losses.append(info.loss)
        self._last = info
        if (now := time.monotonic()) >= self._next:
            self._next = now + (_FRAME_SECONDS if self._live else _LINE_SECONDS)
            self._show(info)
            self._last = None

    def _show(self, info: StepInfo) -> None:
        loss = sum(self._losses) / len(self._losses)
        self._curve.append(loss)
        if self._live is None:
            self._print(plain_line(info, loss))
        else:
            self._live.update(self._framed(self._figures(info, loss)), refresh=True)

    def _print(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, markup=False)

    def _framed(self, content: RenderableType) -> Panel:
        title = Text.assemble(("training ", "bold"), (self.title, "cyan"))
        return Panel(content, title=title, title_align="left", box=ROUNDED, border_style="dim")

    def _figures(self, info: StepInfo, loss: float) -> RenderableType:
        unit, figure = _figure(info, loss)
        speed = f"{info.tokens_per_second:,.0f} tokens/s"
        rows: list[tuple[str, str | Text]] = [
            *([("loss", f"{loss:.3f} nats/token")] if in_nats(info) else []),
            (unit, Text.assemble((f"{figure:.3f}", "bold green"), _held_out(info))),
            ("speed", Text.assemble(speed, (f"   learning rate {info.lr:.1e}", "dim"))),
            ("curve", Text(sparkline(self._curve, self.console.width - 18), style="cyan")),
        ]
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="dim", min_width=10)
        table.add_column(no_wrap=True)
        for row in rows:
            table.add_row(*row)
        return Group(_bar(info), "", table)


def _bar(info: StepInfo) -> Table:
    done = info.elapsed_seconds / max(info.elapsed_seconds + info.eta_seconds, 1e-9)
    left = Text.assemble(
        (f"{done:4.0%}", "bold"),
        f"   step {info.step:,}   {duration(info.elapsed_seconds)} gone   ",
        (f"{duration(info.eta_seconds)} left", "bold"),
    )
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(ratio=1)
    table.add_column(justify="right", no_wrap=True)
    bar = ProgressBar(total=1.0, completed=done, complete_style="cyan", finished_style="green")
    table.add_row(bar, left)
    return table


def plain_line(info: StepInfo, loss: float) -> str:
    """The state of a run in one line, `loss` being the mean of the last steps."""
    unit, figure = _figure(info, loss)
    nats = f"loss {loss:.3f} nats/token, " if in_nats(info) else ""
    return (
        f"step {info.step:,}: {nats}{figure:.3f} {unit}"
        f"{_held_out(info).plain.replace('   ', ', ')}, {info.tokens_per_second:,.0f} tokens/s, "
        f"{duration(info.eta_seconds)} left"
    )


def sparkline(values: list[float], width: int) -> str:
    """A curve in one line of block characters: the mean of the values under each column."""
    width = max(1, min(width, len(values)))
    if not values:
        return ""
    edges = [len(values) * i // width for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / ((high - low) or 1.0)
    return "".join(_BARS[round((value - low) * scale)] for value in means)


def duration(seconds: float) -> str:
    """4:05, or 1:04:05 from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def in_nats(told: StepInfo | HeldOut) -> bool:
    """Whether the objective is, so that there are bits to show."""
    return told.bits_per_token is not None


def shown(held: HeldOut) -> tuple[str, float, float]:
    """Unit, estimate and its standard error, as of `unit_of`."""
    unit, factor = unit_of(held, held.nats_per_token)
    return unit, factor * held.nats_per_token, factor * held.stderr


def unit_of(told: StepInfo | HeldOut, loss: float) -> tuple[str, float]:
    """Bits per character where characters are known, else per token, and what of a loss they are.

    An objective that is not in nats is shown as it is.
    """
    for unit, bits in (("bits/char", told.bits_per_char), ("bits/token", told.bits_per_token)):
        if bits is not None:
            return unit, bits / loss if loss else 0.0
    return "loss/token", 1.0


def _figure(info: StepInfo, loss: float) -> tuple[str, float]:
    unit, factor = unit_of(info, info.loss)
    return unit, factor * loss


def _held_out(info: StepInfo) -> Text:
    if info.held_out is None:
        return Text("")
    _, figure, error = shown(info.held_out)
    return Text(f"   held out {figure:.3f} ± {error:.3f}")
