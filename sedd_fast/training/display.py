"""The progress of training on stderr: live on a terminal, a line every ten seconds elsewhere."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise

from rich.box import ROUNDED
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from sedd_fast.progress import LINE_SECONDS, stderr_console
from sedd_fast.terminal import visible
from sedd_fast.training.progress import HeldOut, StepInfo

_FRAME_SECONDS = 0.2
_STEPS_AVERAGED = 50  # the loss of one batch varies much: its noise levels are random
_BARS = "▁▂▃▄▅▆▇█"


class TrainingDisplay:
    """A context manager to pass to `train` as `on_step`.

    Where the terminal or the pipe is closed it shows nothing more, and training goes on.

    Example:
        >>> with TrainingDisplay("runs/book") as display:
        ...     train(config, on_step=display)
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.title, self.console = visible(title), console or stderr_console()
        self._losses: deque[float] = deque(maxlen=_STEPS_AVERAGED)
        self._curve: list[float] = []
        self._last: StepInfo | None = None  # the newest step, unless it is already shown
        self._next = 0.0  # when to show again, on the monotonic clock
        self._live: Live | None = None
        self._closed = False

    def __enter__(self) -> "TrainingDisplay":
        with self._while_open():
            if self.console.is_terminal:
                waiting = Text("reading the text, building the model ...", style="dim")
                self._live = Live(self._framed(waiting), console=self.console, auto_refresh=False)
                self._live.start(refresh=True)
            else:
                self.console.print(f"training {self.title}: reading the text ...", soft_wrap=True)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._last is not None:
            self._show(self._last)
        if self._live is not None:
            with self._while_open():
                self._live.stop()

    @contextmanager
    def _while_open(self) -> Iterator[None]:
        """Within the context an error of writing ends the display; rich exits for a closed pipe."""
        try:
            yield
        except (OSError, SystemExit):
            self._closed = True

    def __call__(self, info: StepInfo) -> None:
        """After each step."""
        self._losses.append(info.loss)
        self._last = info
        if (now := time.monotonic()) >= self._next:
            self._next = now + (_FRAME_SECONDS if self._live else LINE_SECONDS)
            self._show(info)
            self._last = None

    def _show(self, info: StepInfo) -> None:
        loss = sum(self._losses) / len(self._losses)
        self._curve.append(loss)
        if self._closed:
            return
        with self._while_open():
            if self._live is None:
                self.console.print(plain_line(info, loss), soft_wrap=True)
            else:
                self._live.update(self._framed(self._figures(info, loss)), refresh=True)

    def _framed(self, content: RenderableType) -> Panel:
        title = Text.assemble(("training ", "bold"), (self.title, "cyan"))
        return Panel(content, title=title, title_align="left", box=ROUNDED, border_style="dim")

    def _figures(self, info: StepInfo, loss: float) -> RenderableType:
        unit, factor = unit_of(info)
        columns = Column(style="dim", min_width=10), Column(no_wrap=True)
        table = Table.grid(*columns, padding=(0, 2, 0, 0))
        if info.bits_per_token is not None:
            table.add_row("loss", f"{loss:.3f} nats/token")
        held_out = f"   {text}" if (text := _held_out(info)) else ""
        table.add_row(unit, Text.assemble((f"{factor * loss:.3f}", "bold green"), held_out))
        rate = (f"   learning rate {info.lr:.1e}", "dim")
        table.add_row("speed", Text.assemble(f"{info.tokens_per_second:,.0f} tokens/s", rate))
        if not self.console.options.ascii_only:  # the encoding has the characters of the curve
            curve = sparkline(self._curve, self.console.width - 18)
            table.add_row("curve", Text(curve, style="cyan"))
        return Group(_bar(info), "", table)


def _bar(info: StepInfo) -> Table:
    done = info.elapsed_seconds / max(info.elapsed_seconds + info.eta_seconds, 1e-9)
    left = Text.assemble(
        (f"{done:4.0%}", "bold"),
        f"   step {_of_steps(info)}   {duration(info.elapsed_seconds)} elapsed   ",
        (f"{duration(info.eta_seconds)} left", "bold"),
    )
    columns = Column(ratio=1), Column(justify="right", no_wrap=True)
    table = Table.grid(*columns, padding=(0, 2, 0, 0), expand=True)
    bar = ProgressBar(total=1.0, completed=done, complete_style="cyan", finished_style="green")
    table.add_row(bar, left)
    return table


def plain_line(info: StepInfo, loss: float) -> str:
    """The state of a run in one line, `loss` being the mean of the last steps."""
    unit, factor = unit_of(info)
    parts = [
        f"loss {loss:.3f} nats/token" if info.bits_per_token is not None else "",
        f"{factor * loss:.3f} {unit}",
        _held_out(info),
        f"{info.tokens_per_second:,.0f} tokens/s",
        f"{duration(info.eta_seconds)} left",
    ]
    return f"step {_of_steps(info)}: {', '.join(filter(None, parts))}"


def _of_steps(info: StepInfo) -> str:
    """The step, and how many there will be."""
    about = "" if info.expected_steps == info.n_iters else "about "
    return f"{info.step:,} of {about}{info.expected_steps:,}"


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
    """4:05, or 1:04:05 from one hour on."""
    return str(timedelta(seconds=round(seconds))).removeprefix("0:").removeprefix("0")


def unit_of(info: StepInfo | HeldOut) -> tuple[str, float]:
    """The unit in which to show a loss per token, and the factor from the loss to that unit.

    The unit is bits per character where the number of characters is known, else bits per token; an
    objective that is not in nats is shown as it is.
    """
    loss = info.loss if isinstance(info, StepInfo) else info.nats_per_token
    for unit, bits in (("bits/char", info.bits_per_char), ("bits/token", info.bits_per_token)):
        if bits is not None:
            return unit, bits / loss if loss else 0.0
    return "loss/token", 1.0


def with_error(held: HeldOut) -> str:
    """A held-out loss in its unit, with its standard error where there is one."""
    _, factor = unit_of(held)
    error = "" if held.stderr is None else f" ± {factor * held.stderr:.3f}"
    return f"{factor * held.nats_per_token:.3f}{error}"


def _held_out(info: StepInfo) -> str:
    if (held := info.held_out) is None:
        return ""
    return f"held out {with_error(held)}"
