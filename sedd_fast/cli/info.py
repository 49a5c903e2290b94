"""`sedd-fast info`."""

from typing import Annotated

import typer

from sedd_fast.cli.output import results, write_json


def info(as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """Show versions, devices, and which backend runs where and why.

    Please add this report to a bug report. It names versions, processor and
    instruction set, number and pool of threads, every backend with the reason
    where it cannot run, and whether memory is reused.

    [bold]Environment[/]
      SEDD_FAST_BACKEND=NAME            reference, cpp, triton or cuda alone
      OMP_NUM_THREADS=N                 threads on the CPU
      SEDD_FAST_CHECK=1                 check values on a GPU too (slow)

    [bold]Examples[/]
      sedd-fast info
      sedd-fast info --json | jq .devices
    """
    from sedd_fast import environment

    report = environment.info()
    if as_json:
        write_json(report.as_dict())
    else:
        results().print(str(report))
