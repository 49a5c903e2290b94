"""`sedd-fast lm-eval`: the command line of lm-evaluation-harness, with this package's models."""

from typing import Annotated, Any

import typer

from sedd_fast.cli.manual import HELP_NAMES, ManualCommand


class PassingOn(ManualCommand):
    """A command that reads none of its arguments but a --help in front of all."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        own = not args or args[0] in HELP_NAMES
        return super().parse_args(ctx, args if own else ["--", *args])


def lm_eval(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARGS", help="Of the harness; run --help shows them.", show_default=False
        ),
    ] = None,
) -> None:
    """Run lm-evaluation-harness, which knows the model sedd_fast here.

    All arguments are those of the harness's own command, lm-eval. The same:
    python -m sedd_fast.text.lm_eval ARGS

    [bold]Arguments of the model[/] (--model_args, docs/evaluation.md explains them)
      pretrained=NAME        run or weights directory, or hub name
      adapter=NAME           llada, dream, mdlm or masked_lm
      trust_remote_code=True run the Python code that comes with the weights
      dtype=bfloat16         data type of the network
      mc_num=128             noise levels of each likelihood
      gen_length=256         tokens of a generated text

    [bold]Examples[/]
      sedd-fast lm-eval ls tasks
      sedd-fast lm-eval run --model sedd_fast --model_args pretrained=runs/book
        --tasks arc_easy --batch_size 32
      sedd-fast lm-eval run --help
    """
    from sedd_fast.text.lm_eval import run

    run(arguments or ["--help"])
