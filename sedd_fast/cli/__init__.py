"""The command line `sedd-fast`: demo, train, sample, infill, eval, info.

app.py     the commands' table, exit codes
errors.py  an error as one line with the remedy
output.py  what goes to stdout and to stderr
display.py training, seen live
network.py a trained network with its tokenizer, from --model
One more file for each command; the work itself is in the package, where it can be imported.
"""

from sedd_fast.cli.app import main

__all__ = ["main"]
