"""Version, help and the refusal of wrong options answer without what the work needs."""

import json
import subprocess
import sys

from sedd_fast.cli.app import COMMANDS

HEAVY = (
    "accelerate",
    "datasets",
    "huggingface_hub",
    "matplotlib",
    "numpy",
    "omegaconf",
    "pandas",
    "safetensors",
    "scipy",
    "tensorboard",
    "tokenizers",
    "torch",
    "transformers",
    "triton",
)
#: The arguments, the exit code, and a part of what is written.
CALLS = [
    (["--version"], 0, "sedd-fast "),
    (["--help"], 0, "Usage"),
    *(([command, "--help"], 0, f"sedd-fast {command}") for command in COMMANDS),
    (["smaple"], 2, "no such command"),
    (["sample", "--stps", "3"], 2, "no such option"),
    (["eval"], 2, "missing option"),
    (["eval", "--model", "x", "--mode", "best"], 2, "normalised"),
    (["mauve", "x.jsonl", "--reference", "y", "--keep", "none/there.npz"], 2, "there is no folder"),
]


def test_nothing_heavy_is_imported_before_a_command_runs():
    code = f"""
import contextlib, io, json, sys
from sedd_fast.cli import main
for arguments, *_ in {CALLS!r}:
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.redirect_stderr(text):
        code = main(arguments)
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    print(json.dumps([code, text.getvalue(), heavy]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    for (arguments, code, part), (exited, text, heavy) in zip(CALLS, results, strict=True):
        assert (exited, heavy) == (code, []), (arguments, text)
        assert part in text
