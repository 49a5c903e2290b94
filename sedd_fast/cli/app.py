"""The list of commands, and the exit codes: 0 done, 1 failed, 2 wrong input, 130 interrupted.

`--version`, `--help` and the refusal of a wrong option answer without torch. A command's module has
its options and its manual, and imports at the top only what is light. What does the work is
imported in the functions that use it.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from sedd_fast.cli import demo, errors, genppl, infill, info, mauve, sample, tradeoff, train
from sedd_fast.cli.eval import evaluate
from sedd_fast.cli.lm_eval import PassingOn, lm_eval
from sedd_fast.cli.manual import HELP_NAMES, ManualCommand, ManualGroup
from sedd_fast.terminal import flush, prepared, write
from sedd_fast.version import __version__


class Commands(ManualGroup):
    """The commands; Ctrl-C is reported as one line, where typer would exit without a word.

    A reader of stdout that is gone, as `head` is after its lines, ends a command without a word.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise typer.Exit(errors.report(stop)) from stop
        except BrokenPipeError as closed:
            raise typer.Exit(errors.FAILED) from closed


class Command(ManualCommand):
    """A command whose arguments have been read; `--help` ends before it is invoked."""

    def invoke(self, ctx: Any) -> Any:
        if ctx.parent.params["reuse"]:
            from sedd_fast.environment import reuse_memory

            reuse_memory()
        return super().invoke(ctx)


class PassingOnCommand(Command, PassingOn):
    """A command whose arguments are those of another program."""


app = typer.Typer(
    name="sedd-fast",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": HELP_NAMES},
    epilog="[bold]Exit codes[/]: 0 done; 1 failed while running (loss not finite, disk full, out "
    "of memory); 2 wrong option, value or path, or a library is missing; 130 stopped with Ctrl-C "
    "or a signal, a training saved. One line on stderr gives the reason and the remedy; "
    "SEDD_FAST_DEBUG=1 adds the traceback.",
)
COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo.demo,
    "train": train.train,
    "sample": sample.sample,
    "infill": infill.infill,
    "eval": evaluate,
    "genppl": genppl.genppl,
    "mauve": mauve.mauve,
    "tradeoff": tradeoff.tradeoff,
    "lm-eval": lm_eval,
    "info": info.info,
}
for name, command in COMMANDS.items():
    app.command(name, cls=PassingOnCommand if command is lm_eval else Command)(command)


def _version(asked: bool) -> None:
    if asked:
        write(f"sedd-fast {__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    reuse: Annotated[
        bool,
        typer.Option(
            "--reuse-memory/--no-reuse-memory",
            help="Keep the memory of freed tensors: faster on a CPU. Stands before the command.",
        ),
    ] = True,
) -> None:
    """Text by score entropy discrete diffusion: train, sample, fill gaps, evaluate.

    [bold]sedd-fast demo[/] trains a small model in five minutes, on the CPU and
    without a download, and shows what it can do.
    [bold]sedd-fast COMMAND --help[/] is each command's manual.
    """


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    Args:
        args: the arguments without the program's name; None: those of the process.
    """
    command = typer.main.get_command(app)
    with prepared():
        try:
            code = command.main(args=args, prog_name="sedd-fast", standalone_mode=False)
        except Exception as error:
            if not errors.is_expected(error):
                raise
            code = errors.report(error)
        except SystemExit as closed:  # typer's, where stdout is closed before a command begins
            code = closed.code
        code = code if isinstance(code, int) else 0
        return code if flush() else code or errors.FAILED
