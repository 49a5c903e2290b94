"""`sedd-fast train`."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from sedd_fast.cli.display import TrainingDisplay, shown
from sedd_fast.cli.network import check_backend
from sedd_fast.cli.output import pairs, results
from sedd_fast.data.tokenizers import load_tokenizer
from sedd_fast.progress import is_main_process
from sedd_fast.train import api as trainer
from sedd_fast.train.config import load_config
from sedd_fast.train.metrics import read_metrics
from sedd_fast.train.plots import plot_training
from sedd_fast.train.progress import TrainResult
from sedd_fast.train.run_directory import RunDirectory
from sedd_fast.train.settings import TrainConfig

PICTURE = "curves.png"


class Preset(str, Enum):
    """The settings that the package carries."""

    tiny = "tiny"
    small = "small"
    medium = "medium"


def train(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CONFIG.yaml|KEY=VALUE",
            help="YAML files, and single settings with dots; later ones win.",
            show_default=False,
        ),
    ] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(
            help="Start from these settings: tiny (characters, 5 minutes on a laptop), small "
            "(12 x 768, as published), medium (24 x 1024).",
            show_default="tiny where no file is given, else none",
        ),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir",
            metavar="DIR",
            help="A new directory for everything the run writes.",
            show_default="runs/TEXT-DATE-TIME",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN_DIR",
            help="Go on with this run from its newest checkpoint; KEY=VALUE may change settings.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train a SEDD language model on text.

    Settings come from a preset, YAML files and KEY=VALUE, in that order.
    Losses go to RUN_DIR/metrics.jsonl and TensorBoard, checkpoints to
    RUN_DIR/checkpoints, the averaged weights with the tokenizer to
    RUN_DIR/export. Ctrl-C saves and says how to go on; after a crash or
    kill -9, --resume gives the losses of a run that was never stopped.

    [bold]Settings most often changed[/]
      data.train=book.txt            a file, "books/*.txt", "\\[a.txt,b.txt]",
                                     pydoc, or a data set's name
      data.tokenizer=gpt2            characters, bytes, a file, a hub name
      model.length=256               tokens in a training block
      training.batch_size=32         blocks in a step, over all processes
      training.n_iters=20000         steps
      training.max_minutes=30        ends it sooner
      training.mixed_precision=bf16  no, bf16 or fp16
      optim.lr=1e-3                  highest learning rate
      optim.schedule=cosine          constant or cosine
      graph.type=uniform             absorbing or uniform
      objective.type=d3pm            score_entropy, masked_cross_entropy, d3pm
                                     or concrete_score
      model.kind=ar                  the autoregressive baseline of equal size
    RUN_DIR/config.yaml, written at the start, lists them all.

    [bold]Examples[/]
      sedd-fast train data.train=book.txt
      sedd-fast train mine.yaml optim.lr=1e-3 --run-dir runs/mine
      sedd-fast train --resume runs/mine training.max_minutes=30
      accelerate launch -m sedd_fast train --preset small

    [bold]Exit codes[/]
      0    trained to the end
      1    the loss was no longer a number; the line says where its batch is
      2    a wrong setting, option or path
      130  stopped with Ctrl-C, everything saved
    """
    check_backend("cpu")
    with_equals = [word for word in settings or [] if "=" in word]
    files = [_config_file(word) for word in settings or [] if "=" not in word]
    if resume is not None:
        _refuse_with_resume(files, preset, run_dir)
        with TrainingDisplay(str(resume)) as display:
            finished = trainer.resume(resume, with_equals, display)
    else:
        config = _settings(preset, files, with_equals, run_dir)
        with TrainingDisplay(config.run_dir or str(config.data.train)) as display:
            finished = trainer.train(config, display)
    if is_main_process():
        _report(finished)


def _settings(
    preset: Preset | None, files: list[str], overrides: list[str], run_dir: Path | None
) -> TrainConfig:
    if run_dir is not None:
        # As a file or YAML value the path might be read as something else than text.
        overrides = [*overrides, f"run_dir={_quoted(run_dir)}"]
    name = preset.value if preset else (None if files else "tiny")
    return load_config(name, files, overrides)


def _quoted(path: Path) -> str:
    escaped = str(path).replace("'", "''")
    return f"'{escaped}'"


def _config_file(word: str) -> str:
    if Path(word).suffix.lower() in (".yaml", ".yml"):
        return word
    if Path(word).exists():
        raise ValueError(f"{word} is not a YAML file; to train on a text: data.train={word}")
    raise ValueError(
        f"expected a .yaml file or KEY=VALUE, got {word!r}; see sedd-fast train --help"
    )


def _refuse_with_resume(files: list[str], preset: Preset | None, run_dir: Path | None) -> None:
    given = [*files, *(["--preset"] if preset else []), *(["--run-dir"] if run_dir else [])]
    if given:
        raise ValueError(
            f"--resume: the run keeps its settings, so {given[0]} cannot go with it; change single "
            "ones with KEY=VALUE, or start a new run without --resume"
        )


def _report(finished: TrainResult) -> None:
    console, run = results(), RunDirectory(finished.run_dir)
    files = {
        str(finished.export): "averaged weights and tokenizer",
        str(finished.checkpoint): f"step {finished.step:,}, to go on from",
        str(run.metrics): "losses, learning rate, speed",
    }
    if any("loss" in record for record in read_metrics(run.metrics)):
        picture = plot_training(run.metrics, run.path / PICTURE)
        files[str(picture)] = "the same as a picture"
    if held := finished.held_out:
        unit, figure, error = shown(held)
        console.print(
            f"\nHeld out: [bold]{figure:.3f} ± {error:.3f} {unit}[/], training objective at "
            "averaged weights.\n"
        )
    console.print(pairs(files, styles=("cyan", "dim")))
    console.print()
    console.print(commands(finished))


def commands(finished: TrainResult, prefix: str = "The ") -> Text:
    """What to do with a run, ready to paste."""
    run = shlex.quote(str(finished.run_dir))
    onward = {
        "its bound": f"sedd-fast eval --model {run}",
        "train on": f"sedd-fast train --resume {run} {_longer(finished)}",
    }
    if load_config(files=[RunDirectory(finished.run_dir).config]).network_kind == "ar":
        against = {"compare": f"sedd-fast tradeoff --model SEDD_RUN --ar {run}"}
        return pairs({**against, **onward}, styles=("dim", "bold"))
    start = shlex.quote(prefix) if _can_encode(finished, prefix) else "TEXT"
    return pairs(
        {
            "draw texts": f"sedd-fast sample --model {run}",
            "fill a gap": f"sedd-fast infill --model {run} --prefix {start}",
            **onward,
        },
        styles=("dim", "bold"),
    )


def _can_encode(finished: TrainResult, text: str) -> bool:
    try:
        load_tokenizer(finished.export).encode(text)
    except ValueError:
        return False
    return True


def _longer(finished: TrainResult) -> str:
    """The setting under which a finished run goes on as long again."""
    section = load_config(files=[RunDirectory(finished.run_dir).config]).training
    if section.max_minutes is None or finished.step >= section.n_iters:
        return f"training.n_iters={2 * finished.step}"
    return f"training.max_minutes={2 * section.max_minutes:g}"
