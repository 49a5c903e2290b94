"""`sedd-fast demo`."""

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from sedd_fast.cli.display import TrainingDisplay, duration
from sedd_fast.cli.network import check_backend
from sedd_fast.cli.options import SEED
from sedd_fast.cli.output import heading, pairs, progress, results, show_text
from sedd_fast.cli.train import commands
from sedd_fast.extras import import_library
from sedd_fast.terminal import symbol
from sedd_fast.training import demo as work
from sedd_fast.training.progress import TrainingInterrupted, TrainResult

_BAR = 36  # columns of the longest bar in the table of bits


def demo(
    minutes: Annotated[float, typer.Option(metavar="M", help="Minutes of training.")] = 5.0,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir",
            metavar="DIR",
            help="A new directory for the run, or that of an interrupted demo, to resume it.",
            show_default="runs/demo, or the next free runs/demo-2, ...",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(**SEED, help="Random seed for weights, noise and samples.")
    ] = 0,
) -> None:
    """Train a small model in five minutes and evaluate it; no download.

    The text is Python's own help (pydoc_data.topics, 460,000 characters);
    the tokens of the model (preset tiny) are single characters; 5 % of
    the text is held out. After training the demo prints

      bits     per held-out character, beside uniform, unigram and 5-gram
      samples  three unconditional, one with given start, middle and end
      files    checkpoint and picture of the curves
      commands for further work with the model

    [bold]Examples[/]
      sedd-fast demo
      sedd-fast demo --minutes 30 --run-dir runs/longer
      sedd-fast demo --minutes 0.2     a quick trial

    [bold]Exit codes[/]
      0    done
      2    a wrong option, value or path
      130  stopped with Ctrl-C, everything saved; the message names
         the command that resumes
    """
    check_backend("cpu")
    import_library("accelerate", "train", "demo")
    began = time.monotonic()
    settings = work.DemoSettings(work.demo_directory(run_dir), minutes, seed)
    verb = "Resuming" if work.is_interrupted(settings.run_dir) else "Training"
    progress().print(
        f"{verb} a character model on Python's own help texts, {minutes:g} minutes, "
        f"in {settings.run_dir}\n",
        soft_wrap=True,
    )
    run = _train(settings)
    report = work.evaluate_demo(run, lambda stage: progress().print(f"{stage} ..."))
    _show(run, report)
    took = f"\nThe whole demo took {duration(time.monotonic() - began)}."
    results().print(took, style="dim")


def _train(settings: work.DemoSettings) -> TrainResult:
    path = str(settings.run_dir)
    try:
        with TrainingDisplay(path) as display:
            return work.train_demo(settings, display)
    except TrainingInterrupted as stop:
        again = f"sedd-fast demo --minutes {settings.minutes:g} --run-dir {shlex.quote(path)}"
        raise TrainingInterrupted(stop.run_dir, stop.step, again) from stop


def _show(run: TrainResult, report: work.DemoReport) -> None:
    console = results()
    console.print("", _bits_table(report), _verdict(report), sep="\n", soft_wrap=False)
    titles = [f"sample {number} of {work.SAMPLES}" for number in range(1, work.SAMPLES + 1)]
    titles.append("infill with given start, middle and end")
    for title, drawn in zip(titles, [*report.samples, report.filled], strict=True):
        heading(title)
        show_text(drawn.text, drawn.marks)
    files = {
        str(run.export): "averaged weights and tokenizer",
        str(run.checkpoint): "checkpoint to resume from",
        str(run.run_dir / work.PICTURE): "picture of the training curves",
        str(run.run_dir / work.RECORD): "the figures above",
    }
    files = {path: text for path, text in files.items() if Path(path).exists()}  # without plots
    console.print("", pairs(files, styles=("cyan", "dim")), "", commands(run), sep="\n")


def _verdict(report: work.DemoReport) -> Text:
    share = abs(report.gain) / report.baselines["unigram"]
    side, style = ("below", "bold green") if report.gain > 0 else ("above", "bold yellow")
    gain = f"{abs(report.gain):.2f} bits per character ({share:.0%}) {side} the unigram model"
    notes = (
        f"Its figure is an upper bound {symbol('±', '+-')} standard error, "
        f"{report.bound.samples} noise levels for each of {len(report.bound.nats)} blocks.\n"
        "Python's help repeats passages across topics; that helps the model and the 5-gram.\n"
    )
    return Text.assemble("The model is ", (gain, style), ".\n", (notes, "dim"))


def _bits_table(report: work.DemoReport) -> Table:
    """Bits per held-out character of each model, in descending order."""
    rows = {**report.baselines, "SEDD": report.bits}
    largest = max(rows.values())
    title = "Held-out text, bits per character (less is better)"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    for header in ("model", "bits/char", ""):
        table.add_column(header, justify="right" if header == "bits/char" else "left")
    for name, bits in sorted(rows.items(), key=lambda row: -row[1]):
        ours = name == "SEDD"
        most, error = symbol("≤", "<="), symbol("±", "+-")
        figure = f"{most} {bits:.3f} {error} {report.stderr:.3f}" if ours else f"{bits:.3f}        "
        bar = Text(
            symbol("█", "#") * max(1, round(_BAR * bits / largest)), "green" if ours else "dim"
        )
        label = "SEDD, this model" if ours else name
        table.add_row(label, figure, bar, style="bold" if ours else "")
    return table
