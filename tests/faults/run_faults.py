"""What `make faults` runs: kill training, close its terminal, fill its disk, damage its files.

    python tests/faults/run_faults.py [--kills 20] [--flips 100] [--seed 0]

Every fault is drawn from the seed. A run that was killed, or whose disk was full, is resumed and
must then equal an uninterrupted one: the exported weights bit for bit, and every line of its
metrics. A damaged file must be refused by one clear error, or be read as what was written. The
figures are printed at the end; the exit status is 1 if anything else happened.

Runs are forked from this process, which has imported everything, so that each takes a fraction of a
second. A moment is drawn in seconds, or as the number of a call that writes: the process dies
before it, after it, or with half of a file written.
"""

import argparse
import multiprocessing
import os
import pty
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.tiny_run import losses, settings, write_text
from sedd_fast.cli import main as command_line
from sedd_fast.data.tokenizers import load_tokenizer
from sedd_fast.models import networks
from sedd_fast.training.api import is_finished, resume, train
from sedd_fast.training.config import save_config
from sedd_fast.training.run_directory import RunDirectory, load_file
from sedd_fast.training.step import Learner

STEPS = 30
WRITING = ((os, "fsync"), (os, "replace"), (shutil, "rmtree"), (torch, "save"))
HOW = ("before", "after", "half")
FORK = multiprocessing.get_context("fork")


class Faults:
    """The runs, and the outcomes by kind of fault."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.text = write_text(folder / "words.txt")
        self.outcomes: dict[str, Counter[str]] = {}
        self.whole = self.new("whole")
        train(self.config(self.whole))  # here, so that the forked processes find all imported
        began = time.monotonic()
        self.forked(train, self.config(self.new("timed")))
        self.seconds = time.monotonic() - began
        self.weights = networks.load(self.whole).state_dict()
        self.losses = losses(self.whole)

    def new(self, name: str) -> Path:
        return self.folder / name / "run"

    def config(self, run: Path) -> Any:
        more = [f"training.n_iters={STEPS}", "training.snapshot_freq=4", "training.eval_freq=5"]
        return settings(self.text, run, *more, "log.tensorboard=true")

    def forked(self, function: Callable[..., object], *args: Any, after: float = 0) -> int | None:
        """Call a function in a forked process, killed `after` seconds; return the exit code."""
        process = FORK.Process(target=function, args=args)
        process.start()
        if after:
            process.join(after)
            process.kill()
        process.join()
        return process.exitcode

    def count(self, fault: str, outcome: str) -> None:
        self.outcomes.setdefault(fault, Counter())[outcome] += 1

    def resumed(self, run: Path) -> str:
        """ "equal" where the resumed run equals the uninterrupted one, else what is wrong."""
        started = (run / "config.yaml").is_file()
        code = self.forked(resume, run) if started else self.forked(train, self.config(run))
        if code != 0:
            return f"FAILED: resuming {run} ended with {code}"
        if not is_finished(run) or list(run.rglob(".*")):
            return f"FAILED: {run} is not finished, or has leftovers"
        weights = networks.load(run).state_dict()
        same = all(torch.equal(value, weights[name]) for name, value in self.weights.items())
        return "equal" if same and losses(run) == self.losses else f"FAILED: {run} differs"

    # Kills

    def kill(self, number: int) -> None:
        """Kill a run at a random moment, or (every second one) while it writes; resume it."""
        name = ("killed at a moment", "killed while writing")[number % 2]
        code, tries = 0, 0
        while code == 0:  # it was finished before
            tries += 1
            run = self.new(f"killed-{number}-{tries}")
            if number % 2:
                call, how = self.random.randint(1, 90), self.random.choice(HOW)
                code = self.forked(_train_and_die, self.config(run), call, how)
            else:
                after = self.random.uniform(0, self.seconds)
                code = self.forked(train, self.config(run), after=after)
        self.count(name, self.resumed(run))

    def close_the_terminal(self) -> None:
        run, name = self.new("terminal"), "terminal closed"
        save_config(self.config(run), self.folder / "terminal.yaml")
        pid, terminal = pty.fork()
        if pid == 0:
            apply = Learner.apply

            def slowly(*args: Any) -> None:
                time.sleep(0.3)  # so that the run lasts until its terminal is closed
                apply(*args)

            Learner.apply = slowly  # type: ignore[method-assign]
            code = 99
            try:  # no exception may reach the frames of the parent
                code = command_line(["train", str(self.folder / "terminal.yaml")])
            finally:
                os._exit(code)
        shown = b""
        with suppress(OSError):  # it has ended
            while not (run / "metrics.jsonl").is_file() or len(losses(run)) < 10:
                shown = shown[-2000:] + os.read(terminal, 10_000)
        os.close(terminal)  # SIGHUP; writing to the terminal is an error from now on
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        steps = RunDirectory(run).steps()
        saved = code == 130 and steps and steps[-1] == max(step for step, *_ in losses(run))
        self.count(
            name,
            self.resumed(run) if saved else f"FAILED: exit code {code}, steps {steps}, {shown!r}",
        )

    # Full disks

    def fill_the_disk(self, limit: int) -> None:
        """Let no file be larger than `limit` bytes."""
        run, name = self.new(f"disk-{limit}"), "disk full"
        run.parent.mkdir()
        save_config(self.config(run), run.parent / "settings.yaml")
        receive, send = os.pipe()
        process = FORK.Process(target=_train_limited, args=(run.parent, limit, send))
        process.start()
        os.close(send)
        with open(receive, encoding="utf-8") as errors:
            lines = [line for line in errors.read().splitlines() if not _is_progress(line)]
        process.join()
        latest, code = RunDirectory(run).latest(), process.exitcode
        kept = str(latest) if latest else "no checkpoint yet"
        right = code == 1 and len(lines) == 1 and kept in lines[0] and "too large" in lines[0]
        if code == 0:
            self.count(name, "had room")
        else:
            self.count(name, self.resumed(run) if right else f"FAILED: {limit}: {code}, {lines}")

    # Damaged files

    def damage(self, file: str, reads: Callable[[Path], Any], flips: int) -> None:
        """Flip single bits of a file of the finished run, and cut it at several lengths."""
        content = (self.whole / file).read_bytes()
        expected, copy = reads(self.whole), self.new(f"damaged-{file.replace('/', '-')}")
        shutil.copytree(self.whole, copy)
        for _ in range(flips):
            place = self.random.randrange(8 * len(content))
            flipped = bytearray(content)
            flipped[place // 8] ^= 1 << place % 8
            self._read_damaged(f"bit flipped in {file}", copy, file, flipped, reads, expected)
        for _ in range(max(1, flips // 10)):
            cut = content[: self.random.randrange(len(content))]
            self._read_damaged(f"{file} cut", copy, file, cut, reads, expected)

    def _read_damaged(
        self, name: str, run: Path, file: str, content: bytes, reads: Any, expected: Any
    ) -> None:
        (run / file).write_bytes(content)
        try:
            same = _same(reads(run), expected)
        except (ValueError, OSError):
            self.count(name, "caught")
        except Exception as error:
            self.count(name, f"FAILED: {type(error).__name__}: {error}")
        else:
            self.count(name, "harmless" if same else "FAILED: read as other content")

    def table(self) -> int:
        """Print the outcomes; return the number of those that are failures."""
        failed = 0
        for fault, outcomes in self.outcomes.items():
            good = {k: n for k, n in sorted(outcomes.items()) if not k.startswith("FAILED")}
            bad = {k: n for k, n in outcomes.items() if k.startswith("FAILED")}
            shown = ", ".join(f"{k} {n}" for k, n in good.items())
            print(f"{fault:56} {shown or 'none'} of {outcomes.total()}")
            for outcome, n in list(bad.items())[:5]:
                print(f"    {n} x {outcome[:300]}")
            failed += sum(bad.values())
        for kind in ("bit flipped", "cut"):
            total = sum((n for name, n in self.outcomes.items() if kind in name), Counter())
            print(
                f"{kind}: caught {total['caught']} of {total.total()}, harmless {total['harmless']}"
            )
        print(f"{failed} failed" if failed else "all as promised")
        return failed


def _train_and_die(config: Any, call: int, how: str) -> None:
    """Train, and kill this process at the call of that number that writes."""
    calls = 0

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call and how == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **options)
            if calls == call:
                if how == "half" and function is save:
                    _cut_in_half(args[1])
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return called

    save = torch.save
    for owner, name in WRITING:
        setattr(owner, name, dying(getattr(owner, name)))
    train(config)


def _cut_in_half(target: Any) -> None:
    """Cut a file, which is given by its path or open, in half."""
    path = target if isinstance(target, (str, Path)) else target.name
    if hasattr(target, "flush"):
        target.flush()
    os.truncate(path, os.path.getsize(path) // 2)


def _train_limited(folder: Path, limit: int, errors: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(errors, 2)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    os._exit(command_line(["train", str(folder / "settings.yaml")]))


def _is_progress(line: str) -> bool:
    return line.startswith(("training ", "step "))


def _checkpoint(run: Path) -> Any:
    newest = RunDirectory(run).latest()
    assert newest is not None
    return load_file(newest / "state.pt"), load_file(newest / "rng-0.pt")


def _export(run: Path) -> Any:
    model = networks.load(run)
    return model.config, dict(model.state_dict()), load_tokenizer(run / "export").fingerprint


def _tokenizer(run: Path) -> Any:
    tokenizer = load_tokenizer(run / "tokenizer")
    return tokenizer.fingerprint, tokenizer.vocab_size


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and a == b


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--flips", type=int, default=100, help="single bits, in each file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # forked processes; and sums in another order would differ
    torch.set_num_interop_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        faults = Faults(Path(folder), options.seed)
        for number in range(options.kills):
            faults.kill(number)
        faults.close_the_terminal()
        state = (faults.whole / f"checkpoints/step-{STEPS:08d}/state.pt").stat().st_size
        for limit in (100, 1500, 4000, state // 4, state // 2, state - 1, 100 * state):
            faults.fill_the_disk(limit)
        newest = f"checkpoints/step-{STEPS:08d}"
        readers = {f"{newest}/state.pt": _checkpoint, f"{newest}/rng-0.pt": _checkpoint}
        exported = (faults.whole / "export").iterdir()
        readers |= {f"export/{file.name}": _export for file in sorted(exported)}
        kept = (faults.whole / "tokenizer").iterdir()
        readers |= {f"tokenizer/{file.name}": _tokenizer for file in sorted(kept)}
        for file, reads in readers.items():
            faults.damage(file, reads, options.flips)
        return 1 if faults.table() else 0


if __name__ == "__main__":
    sys.exit(main())
