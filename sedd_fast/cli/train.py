"""`sedd-fast train`."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from sedd_fast.cli.errors import warn
from sedd_fast.cli.output import pairs, progress, results
from sedd_fast.extras import MissingLibraryError, import_library
from sedd_fast.names import Preset
from sedd_fast.progress import is_main_process

if TYPE_CHECKING:
    from sedd_fast.training.progress import TrainResult

PICTURE = "curves.png"


def train(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE.yaml|KEY=VALUE",
            help="YAML files and single settings; later ones win.",
            show_default=False,
        ),
    ] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(
            metavar="NAME",
            help="tiny (subwords, 5 minutes on a laptop), small (12 x 768, as published) or "
            "medium (24 x 1024).",
            show_default="tiny if no file",
        ),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir",
            metavar="DIR",
            help="New directory of the run.",
            show_default="runs/TEXT-DATE-TIME",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN_DIR",
            help="Resume this run; KEY=VALUE may change settings.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train a SEDD language model on text.

    Settings come from a preset, YAML files and KEY=VALUE, in that order.
    Losses go to RUN_DIR/metrics.jsonl and TensorBoard, checkpoints to
    RUN_DIR/checkpoints, the averaged weights with the tokenizer to
    RUN_DIR/export. Ctrl-C, SIGTERM and a closed terminal save, and print
    the command to resume; after a crash or kill -9, a resumed run has the
    losses of an uninterrupted one. One process at a time trains in RUN_DIR.

    [bold]Settings most often changed[/]
      data.train=book.txt            a file, "books/*.txt", "\\[a.txt,b.txt]",
                                     pydoc, docstrings, or a data set
      data.tokenizer=gpt2            bpe:2048, characters, bytes, file, hub name
      model.length=256               tokens per training block
      training.batch_size=32         blocks per step, over all processes
      training.n_iters=20000         steps
      training.max_minutes=30        stops earlier, after this time
      training.mixed_precision=bf16  no, bf16 or fp16
      optim.lr=1e-3                  highest learning rate of AdamW
      optim.schedule=cosine          constant or cosine
      graph.type=uniform             absorbing or uniform
      objective.type=d3pm            or score_entropy, masked_cross_entropy, ...
      model.init=runs/base           starts from trained weights (or bundled)
      data.format=prompt_completion  fine-tuning on JSON lines: docs/finetuning.md
      model.kind=ar                  the autoregressive baseline of equal size
    RUN_DIR/config.yaml, written at the start, lists them all.

    [bold]Examples[/]
      sedd-fast train data.train=book.txt
      sedd-fast train mine.yaml optim.lr=1e-3 --run-dir runs/mine
      sedd-fast train --resume runs/mine training.max_minutes=30
      accelerate launch -m sedd_fast train --preset small
    """
    from sedd_fast.text.network import check_backend
    from sedd_fast.training import api as trainer
    from sedd_fast.training.config import load_config
    from sedd_fast.training.display import TrainingDisplay

    check_backend("cpu")
    import_library("accelerate", "train", "train")
    with_equals = [word for word in settings or [] if "=" in word]
    files = [_config_file(word) for word in settings or [] if "=" not in word]
    if resume is not None:
        _refuse_with_resume(files, preset, run_dir)
        if outlook := trainer.outlook(resume, with_equals):
            progress().print(outlook, soft_wrap=True)
        with TrainingDisplay(str(resume)) as display:
            finished = trainer.resume(resume, with_equals, display)
    else:
        default: Preset | None = None if files else "tiny"
        config = load_config(preset or default, files, with_equals)
        if run_dir is not None:
            config = replace(config, run_dir=str(run_dir))
        with TrainingDisplay(config.run_dir or str(config.data.train)) as display:
            finished = trainer.train(config, display)
    if is_main_process():
        _report(finished)


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
            f"--resume: {given[0]} cannot be combined with it, because the run keeps its settings; "
            "change single settings with KEY=VALUE, or start a new run without --resume"
        )


def _report(finished: "TrainResult") -> None:
    from sedd_fast.training.display import unit_of, with_error
    from sedd_fast.training.metrics import read_metrics
    from sedd_fast.training.plots import plot_training
    from sedd_fast.training.run_directory import RunDirectory

    console, run = results(), RunDirectory(finished.run_dir)
    files = {
        str(finished.export): "averaged weights and tokenizer",
        str(finished.checkpoint): f"checkpoint of step {finished.step:,}, to resume from",
        str(run.metrics): "losses, learning rate, speed",
    }
    if any("loss" in record for record in read_metrics(run.metrics)):
        try:
            picture = plot_training(
                run.metrics, run.path / PICTURE, held_out_source=finished.held_out_source
            )
            files[str(picture)] = "picture of the training curves"
        except (OSError, MissingLibraryError) as why:
            warn(f"the run is complete, but its picture could not be written: {why}")
    if held := finished.held_out:
        figure = (f"{with_error(held)} {unit_of(held)[0]}", "bold")
        rest = ", training objective with the averaged weights, of "
        rest += f"{finished.held_out_source}.\n"
        console.print(Text.assemble("\nHeld out: ", figure, rest))
    console.print(pairs(files, styles=("cyan", "dim")), "", commands(finished), sep="\n")


def commands(finished: "TrainResult", longer: bool = True) -> Text:
    """Commands for a finished run, ready to paste; `longer`: also one that trains it longer."""
    from sedd_fast.training import api as trainer
    from sedd_fast.training.config import load_run_config
    from sedd_fast.training.run_directory import RunDirectory

    run = shlex.quote(str(finished.run_dir))
    config = load_run_config(RunDirectory(finished.run_dir).config)
    if config.network_kind == "ar":
        rows = {"compare": f"sedd-fast tradeoff --model SEDD_RUN --ar {run}"}
    elif config.data.format == "prompt_completion":
        rows = {"complete": f"sedd-fast infill --model {run} --from PROMPTS.jsonl"}
    else:
        rows = {
            "sample": f"sedd-fast sample --model {run}",
            "infill": f"sedd-fast infill --model {run} --prefix {_prefix(finished)}",
        }
    rows["bound"] = f"sedd-fast eval --model {run}"
    if longer:
        settings = trainer.longer(finished.run_dir)
        rows["train longer"] = f"sedd-fast train --resume {run} {settings}"
    return pairs(rows, styles=("dim", "bold"))


def _prefix(finished: "TrainResult") -> str:
    """An example of a prefix that the tokenizer can encode."""
    from sedd_fast.data.tokenizers import load_tokenizer

    try:
        load_tokenizer(finished.export).encode("The ")
    except ValueError:
        return "TEXT"
    return shlex.quote("The ")
