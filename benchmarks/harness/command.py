"""What every script of benchmarks/ shares on its command line. The import needs only Python."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help text begins with a module's docstring and keeps its line breaks."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def gpu_parser(doc: str | None) -> argparse.ArgumentParser:
    """The parser of a study for GPUs whose code runs on a CPU too, in tiny sizes."""
    parser = make_parser(doc)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="(%(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check that it runs")
    parser.add_argument("--json", metavar="FILE", type=output_file, help="write every figure")
    return parser


def lacks_gpu(args: argparse.Namespace) -> bool:
    """Whether the GPU asked for is absent; then it prints what to do."""
    import torch

    if args.device == "cpu" or torch.cuda.is_available():
        return False
    print("torch sees no CUDA device; --device cpu --quick tries the code", file=sys.stderr)
    return True


def positive_int(text: str) -> int:
    """The type of an option that takes a whole number from 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a positive whole number is needed, got {text!r}")
    return int(text)


def positive_ints(text: str) -> tuple[int, ...]:
    """The type of an option that takes whole numbers from 1 with commas between."""
    return tuple(positive_int(word) for word in text.split(","))


def output_file(text: str) -> Path:
    """The type of an option that names a file to write; its folder must exist."""
    path = Path(text).expanduser()
    folder = path.absolute().parent
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {folder}; make it first")
    return path


def some_of(*names: str, every: str | None = None) -> Any:
    """The type of an option that takes some of these names with commas between, in any order.

    ``every``: a word that stands for all of them.
    """

    def chosen(text: str) -> tuple[str, ...]:
        found = names if text == every else tuple(text.split(","))
        if wrong := [name for name in found if name not in names]:
            known = ", ".join([*names, *filter(None, [every])])
            raise argparse.ArgumentTypeError(f"expected some of {known}, got {wrong[0]!r}")
        return tuple(dict.fromkeys(found))

    return chosen


def write_json(path: Path, record: object, indent: int | None = 1) -> None:
    """Write a file at once: an interrupted call leaves the previous file intact."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(record, indent=indent) + "\n")
    new.replace(path)


def read_json(path: str | Path) -> Any:
    """The content of a JSON file."""
    return json.loads(Path(path).expanduser().read_text())


def commit() -> str | None:
    """The checkout's commit, with "+" where tracked files differ from it; None outside git."""

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(ROOT), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return head and head + ("+" if changed else "")
