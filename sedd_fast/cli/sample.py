"""`sedd-fast sample`."""

from __future__ import annotations

from typing import Annotated

import typer

from sedd_fast.cli import requests
from sedd_fast.cli import sampler_options as options
from sedd_fast.cli.network import load_network
from sedd_fast.data.prompts import Piece, lay_out


@options.sharing
def sample(
    model: options.Model,
    prompt: Annotated[
        str,
        typer.Option(
            "--prompt", "-p", metavar="TEXT", help="The text starts with this.", show_default=False
        ),
    ] = "",
    *,
    chosen: options.Chosen,
) -> None:
    """Draw texts from a trained model.

    Starts at pure noise and takes it away in --steps steps. Every text is
    drawn on its own and ends at its first end-of-text, which is left out.
    Texts go to stdout, progress to stderr.

    [bold]Examples[/]
      sedd-fast sample --model runs/demo --batch 3 --seed 1
      sedd-fast sample --model louaaron/sedd-small --steps 1024
      sedd-fast sample --model runs/demo --prompt "The " --json > texts.jsonl

    [bold]Exit codes[/]
      0    done
      2    a wrong option, value or path
      130  stopped with Ctrl-C
    """
    network = load_network(model, chosen.tokenizer, chosen.device, chosen.dtype)
    settings = options.Settings.of(network, chosen)
    pieces = [Piece(prompt, 0, "--prompt")] if prompt else []
    wanted = requests.Request(*lay_out(pieces, network.tokenizer, settings.length))
    requests.draw([wanted], network, settings, chosen.keep_after_eot, chosen.as_json)
