"""The command line `sedd-fast`. Each command has a file of its own name; app.py lists them.

They share:

    options.py          options of several commands; a command's options as one dataclass
    sampler_options.py  the options of the samplers
    requests.py         what `sample` and `infill` draw: requests of a file, output of samples
    samples.py          samples to judge, read from a file or drawn
    manual.py           the help: one screen, and --help-all
    output.py           what goes to stdout, to stderr and into files
    errors.py           an error as one line with the remedy, and the exit codes

What is printed goes through `sedd_fast.terminal`: characters that the encoding of stdout or stderr
lacks, and those that a terminal would obey, are shown as escapes.

The work itself is in the other packages, where it can be imported: models and texts in
`sedd_fast.text`.
"""

from sedd_fast.cli.app import main

__all__ = ["main"]
