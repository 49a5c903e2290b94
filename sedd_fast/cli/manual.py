"""Help in one screen of 80 columns: --help shows the usual options, --help-all every one.

An option of a command that is rarely needed is declared with `**RARE`.
"""

import inspect
import os
import re
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

HELP_ALL = "--help-all"
HELP_NAMES = ["-h", "--help", HELP_ALL]
#: What the declaration of a rarely needed option contains.
RARE: dict[str, Any] = {"rich_help_panel": "Rarely needed options"}
_HYPHEN = "\u2011"  # at which no line ends
#: What is rewritten in the text of an option, which ends with its default and more in brackets.
_SHORTER = (
    (r"(; |(?<=\[))[^;\[\]]*x[<>]=?[^;\]]*", ""),  # the range of a number, such as 1<=x<=1000
    (r"\\?\[\]", ""),
    (r" +\\?\[(default|required)", r" [\1"),  # older versions of typer escape the bracket
    (r"\[default: \((.*)\)\]", r"[default: \1]"),
)


class _Manual:
    """The help of a command: its docstring as it stands, with [bold]...[/], then its options."""

    def parse_args(self: Any, ctx: Any, args: list[str]) -> Any:
        ctx.meta[HELP_ALL] = HELP_ALL in args
        return super().parse_args(ctx, args)  # type: ignore[misc]

    def get_help(self: Any, ctx: Any) -> str:
        return super().get_help(ctx).replace(_HYPHEN, "-")  # type: ignore[misc]

    def format_help_text(self: Any, ctx: Any, formatter: Any) -> None:
        formatter.write("\n")
        for line in inspect.cleandoc(self.help or "").splitlines():
            formatter.write(f"  {_styled(line)}".rstrip() + "\n")

    def format_options(self: Any, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        rare, show_all = [], ctx.meta.get(HELP_ALL, False)
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is None:
                continue
            names, text = record[0].partition(" <")[0], record[1]  # without "<list[str]>"
            section = f"{parameter.param_type_name.capitalize()}s"
            section = getattr(parameter, "rich_help_panel", None) or section
            if HELP_ALL in parameter.opts:
                names, text = ", ".join(HELP_NAMES[:2]), "Show this message."
            elif section in RARE.values() and not show_all:
                rare.append(parameter.opts[0])
                continue
            for pattern, new in _SHORTER:
                text = re.sub(pattern, new, text)
            sections.setdefault(section, []).append((names, text.strip()))
        if rare:
            sections["Options"].append((HELP_ALL, f"Also show {', '.join(rare)}."))
        for title, rows in sections.items():
            if rows:
                with formatter.section(_styled(f"[bold]{title}[/]")):
                    formatter.write_dl([(name, text.replace("-", _HYPHEN)) for name, text in rows])
        if isinstance(self, TyperGroup):
            self.format_commands(ctx, formatter)

    def format_epilog(self: Any, ctx: Any, formatter: Any) -> None:
        if self.epilog:
            formatter.write_paragraph()
            formatter.write_text(_styled(self.epilog))


class ManualCommand(_Manual, TyperCommand):
    """A command with such a help."""


class ManualGroup(_Manual, TyperGroup):
    """A group of commands with such a help, which shows the first paragraph of each."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [
            (name, " ".join(inspect.cleandoc(command.help or "").partition("\n\n")[0].split()))
            for name, command in commands
            if command is not None and not command.hidden
        ]
        with formatter.section(_styled("[bold]Commands[/]")):
            formatter.write_dl(rows)


def _styled(text: str) -> str:
    """Text with [bold]...[/] as escapes of a terminal; where it goes elsewhere typer drops them."""
    bold = "NO_COLOR" not in os.environ
    text = re.sub(
        r"\[bold\](.*?)\[/\]", lambda m: typer.style(m[1], bold=True) if bold else m[1], text
    )
    return text.replace(r"\[", "[")
