"""`sedd-fast demo`."""

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from sedd_fast.cli.options import SEED
from sedd_fast.cli.output import heading, pairs, progress, results, show_text
from sedd_fast.cli.train import commands
from sedd_fast.extras import import_library
from sedd_fast.terminal import symbol

if TYPE_CHECKING:
    from sedd_fast.text import demo as work
    from sedd_fast.training.progress import TrainResult

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

    The text is Python's own help (pydoc_data.topics, 460,000 characters),
    in subwords learned from it; 5 % of it, in passages spread over the
    text, are held out. After training the demo prints

      bits     per held-out character, beside n-grams and an autoregressive
               network that is trained for a fifth of the time
      words    the share that occurs in the training text
      samples  three unconditional, one with given start, middle and end
      files    checkpoint and picture of the curves
      commands for further work with the model

    [bold]Examples[/]
      sedd-fast demo
      sedd-fast demo --minutes 30 --run-dir runs/longer
      sedd-fast demo --minutes 0.2     a quick trial

    [bold]Exit codes[/]
      0    done, and the model is better than the unigram model
      1    done, and it is not: too few steps
      2    a wrong option, value or path
      130  stopped with Ctrl-C, everything saved; the message names
         the command that resumes
    """
    from sedd_fast.text import demo as work
    from sedd_fast.text.network import check_backend
    from sedd_fast.training.display import duration
    from sedd_fast.training.progress import TrainingInterrupted
    from sedd_fast.training.run_directory import RunDirectory

    check_backend("cpu")
    import_library("accelerate", "train", "demo")
    began = time.monotonic()
    settings = work.DemoSettings(work.demo_directory(run_dir), minutes, seed)
    try:
        run, report = _train_and_evaluate(settings)
    except KeyboardInterrupt as stop:
        path = settings.run_dir
        again = f"sedd-fast demo --minutes {minutes:g} --run-dir {shlex.quote(str(path))}"
        step = max(RunDirectory(path).steps(), default=0)
        raise TrainingInterrupted(path, step, again) from stop
    _show(run, report)
    took = f"\nThe whole demo took {duration(time.monotonic() - began)}."
    results().print(took, style="dim")
    if report.gain <= 0:
        results().print(_too_few(run, minutes), style="bold yellow", soft_wrap=True)
        raise typer.Exit(1)


def _train_and_evaluate(
    settings: "work.DemoSettings",
) -> "tuple[TrainResult, work.DemoReport]":
    from sedd_fast.text import demo as work
    from sedd_fast.training.display import TrainingDisplay

    path, minutes = settings.run_dir, settings.minutes
    verb = "Resuming" if work.is_interrupted(path) else "Training"
    _say(f"{verb} a model on Python's own help texts, {minutes:g} minutes, in {path}")
    with TrainingDisplay(str(path)) as display:
        run = work.train_demo(settings, display)
    _say("Training the autoregressive baseline, a fifth of the time")
    with TrainingDisplay(str(path / work.BASELINE)) as display:
        work.train_demo_baseline(run, display)
    report = work.evaluate_demo(run, progress=True, on_stage=lambda stage: _say(f"{stage} ..."))
    return run, report


def _say(line: str) -> None:
    progress().print(line, soft_wrap=True)


def _show(run: "TrainResult", report: "work.DemoReport") -> None:
    from sedd_fast.text import demo as work

    console = results()
    tables = _bits_table(report), _verdict(report), _words_table(report)
    console.print("", *tables, sep="\n", soft_wrap=False)
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
    further = commands(run, longer=report.gain > 0)  # else the last line says how
    console.print("", pairs(files, styles=("cyan", "dim")), "", further, sep="\n")


def _too_few(run: "TrainResult", minutes: float) -> str:
    """What to say of a model that is not better than the unigram model."""
    steps = f"{run.step:,} steps were" if run.step > 1 else "1 step was"
    return (
        f"{steps} too few: the model is no better than the unigram model. To train it longer: "
        f"sedd-fast train --resume {shlex.quote(str(run.run_dir))} "
        f"training.max_minutes={minutes + max(5.0, 2 * minutes):g}"
    )


def _verdict(report: "work.DemoReport") -> Text:
    share = abs(report.gain) / report.baselines["unigram"]
    side, style = ("below", "bold green") if report.gain > 0 else ("above", "bold yellow")
    gain = f"{abs(report.gain):.2f} bits per character ({share:.0%}) {side} the unigram model"
    bound = report.bound.bound
    notes = (
        f"The held-out text: {report.held_out}. n-grams are of the same subwords.\n"
        f"The model's figure is an upper bound {symbol('±', '+-')} standard error, "
        f"{bound.samples} noise levels for each of {len(bound.nats)} blocks.\n"
        "Python's help repeats passages across topics; that helps all models.\n"
    )
    return Text.assemble("The model is ", (gain, style), ".\n", (notes, "dim"))


def _words_table(report: "work.DemoReport") -> Table:
    """The share of known words, of held-out text and of samples."""
    title = "Words that occur in the training text"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    table.add_column("words of")
    table.add_column("share", justify="right")
    for name, share in report.known_words.items():
        table.add_row(name if name == "held-out text" else f"samples, {name}", f"{share:.0%}")
    return table


def _bits_table(report: "work.DemoReport") -> Table:
    """Bits per held-out character of each model, in descending order."""
    from sedd_fast.text.demo import MODEL

    rows = {**report.baselines, MODEL: report.bits}
    largest = max(rows.values())
    title = "Held-out text, bits per character (less is better)"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    for header in ("model", "bits/char", ""):
        table.add_column(header, justify="right" if header == "bits/char" else "left")
    for name, bits in sorted(rows.items(), key=lambda row: -row[1]):
        ours = name == MODEL
        most, error = symbol("≤", "<="), symbol("±", "+-")
        figure = f"{most} {bits:.3f} {error} {report.stderr:.3f}" if ours else f"{bits:.3f}        "
        bar = Text(
            symbol("█", "#") * max(1, round(_BAR * bits / largest)), "green" if ours else "dim"
        )
        table.add_row(name, figure, bar, style="bold" if ours else "")
    return table
