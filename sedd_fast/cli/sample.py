"""`sedd-fast sample`."""

from typing import Annotated

from sedd_fast.cli.options import BundledModel, expand_options
from sedd_fast.cli.sampler_options import SamplingOptions, text_option


@expand_options
def sample(
    model: BundledModel = None,
    prompt: Annotated[str, text_option("--prompt", "-p", help="Text at the start.")] = "",
    *,
    options: SamplingOptions,
) -> None:
    """Draw samples from a trained model.

    Starts at pure noise and removes it in --steps steps. Samples are
    independent. Each ends at its first end-of-text, which is left out.
    Samples go to stdout, progress to stderr.

    [bold]Examples[/]
      sedd-fast sample -n 3                 the small model in the package
      sedd-fast sample --model runs/demo --num-samples 3 --seed 1
      sedd-fast sample --model louaaron/sedd-small --steps 1024
      sedd-fast sample --model runs/demo --prompt "The " --json > samples.jsonl
    """
    from sedd_fast.cli.requests import draw
    from sedd_fast.text.network import load_network
    from sedd_fast.text.requests import from_prompt

    network = load_network(
        model, options.tokenizer, options.device, options.dtype, options.adapter,
        options.trust_remote_code,
    )  # fmt: skip
    length = options.length or network.model.config.length
    draw([from_prompt(prompt, network.tokenizer, length, "--prompt")], network, options)
