"""Options that several commands share, and commands whose options are one frozen dataclass."""

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from sedd_fast.cli.errors import warn
from sedd_fast.cli.manual import RARE
from sedd_fast.cli.output import writable
from sedd_fast.files.hub import check_model
from sedd_fast.names import AdapterName, Precision

#: A count above this is taken for a mistake of typing.
MOST = 1_000_000
#: What every option that counts something, and every seed, has in common.
COUNT: dict[str, Any] = {"metavar": "N", "min": 1, "max": MOST}
SEED: dict[str, Any] = {"metavar": "N", "min": 0, "max": 2**63 - 1}


def named_model(name: str | None) -> str | None:
    """The name of a model; a path where nothing is, is refused before torch is loaded."""
    if name:
        check_model(name)
    return name


def _model_option(**more: Any) -> Any:
    return typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        callback=named_model,
        help="Run or weights directory, or hub name.",
        **more,
    )


Model = Annotated[str, _model_option()]
BundledModel = Annotated[str | None, _model_option(show_default="the one in the package")]
NumSamples = Annotated[int, typer.Option("--num-samples", "-n", **COUNT, help="Number of samples.")]
BatchSize = Annotated[
    int, typer.Option("--batch-size", **COUNT, help="Sequences at a time: a matter of memory.")
]
Length = Annotated[
    int | None,
    typer.Option("--length", "-l", **COUNT, help="Length in tokens.", show_default="as trained"),
]
DeviceName = Annotated[
    str, typer.Option(metavar="NAME", help="cpu, cuda or cuda:N; auto: GPU if any.")
]
Dtype = Annotated[
    Precision,
    typer.Option(
        metavar="NAME",
        help="Data type of the matrix products: float32, bfloat16 or float16. Scores are always "
        "float32.",
        **RARE,
    ),
]
AdapterOption = Annotated[
    AdapterName | None,
    typer.Option(
        "--adapter",
        metavar="NAME",
        help="How a masked language model of Hugging Face is called: llada, dream, mdlm or "
        "masked_lm (BERT and its relatives).",
        show_default="by its config.json",
        **RARE,
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run the Python code that comes with a model of Hugging Face.",
        **RARE,
    ),
]
TokenizerName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The tokenizer: bytes, a file, a directory or a hub name.",
        show_default="the one beside the weights",
        **RARE,
    ),
]
JudgeName = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="The model that judges: a causal language model, by hub name or directory.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
SaveTo = Annotated[
    Path | None,
    typer.Option(
        "--save",
        callback=writable,
        metavar="FILE.json",
        help="Write settings and results to this file.",
    ),
]

_OLD = "old_"  # prefix of the hidden parameter that takes an option's old names


@dataclass(frozen=True)
class Renamed:
    """Metadata of a field: former names of an option that counts something.

    They still work, are not in the help, and cause a warning.
    """

    names: tuple[str, ...]


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer reads it: a parameter that is a dataclass is replaced by its fields.

    The fields are annotated as typer's options and arguments are, and may carry :class:`Renamed`.

    Example:
        >>> @dataclass(frozen=True)
        ... class GreetOptions:
        ...     name: Annotated[str, typer.Option(help="Who is greeted.")] = "you"
        >>> @expand_options
        ... def greet(options: GreetOptions) -> None:
        ...     print(f"hello {options.name}")
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    expanded: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            hints |= get_type_hints(groups[name], include_extras=True)
            expanded += inspect.signature(groups[name]).parameters.values()
        else:
            expanded.append(parameter)
    renamed = {
        each.name: entry.names
        for each in expanded
        for entry in getattr(hints[each.name], "__metadata__", ())
        if isinstance(entry, Renamed)
    }
    keyword = inspect.Parameter.KEYWORD_ONLY
    for name, names in renamed.items():
        hints[_OLD + name] = Annotated[int | None, typer.Option(*names, hidden=True, **COUNT)]
        expanded.append(inspect.Parameter(_OLD + name, keyword, default=None))

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for name, names in renamed.items():
            if (value := given.pop(_OLD + name)) is not None:
                option = "--" + name.replace("_", "-")
                warn(f"{names[0]} is now called {option}; the next release removes the old name")
                given[name] = value
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        command(**given)

    parameters = [each.replace(kind=keyword, annotation=hints[each.name]) for each in expanded]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def refuse_given(context: typer.Context, names: Iterable[str], why: str) -> None:
    """Refuse the options of parameters `names` that the command line gives.

    Raises:
        ValueError: an option that would have no effect; the message says `why`.
    """
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        given = source is not None and source.name != "DEFAULT"
        if given and name.removeprefix(_OLD) in names:
            raise ValueError(f"{parameter.opts[0]}: {why}; leave it out")
