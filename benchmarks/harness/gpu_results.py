"""What ``on_gpu.py`` writes and prints: a log, the figures of every step, the failed tests.

One call of on_gpu.py writes into the folder of results:

    NAME-log.txt            everything that the steps printed
    NAME-figures.json       {"commit", "gpu", "steps": {step: {"status", "seconds", "reason" of a
                            failure, part: figures}}}
    NAME-<step>.<part>.json figures of the running step; they move into NAME-figures.json
    NAME-<tests>.xml        JUnit report of each step that runs tests
    NAME-summary.txt        what is printed last
"""

import contextlib
import re
from pathlib import Path
from typing import Any

from benchmarks.harness import gpu_summary
from benchmarks.harness.command import read_json, write_json
from benchmarks.harness.gpu_steps import STEPS

#: Characters of a log: a file above 16 MB may not be fetched from the machine.
LONGEST_LOG = 14_000_000
#: A line that gives the reason of a failure: the end of a traceback, or a compiler's error.
REASON = re.compile(r"^[\w.]*(Error|Exception|Interrupt)\b|\berror: ")


class Results:
    """The results of one call, written as soon as they are known."""

    def __init__(self, folder: Path, name: str, commit: str, gpu: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._stem = folder / name
        self._log = self._file("log.txt").open("w", errors="replace")
        self._left = LONGEST_LOG
        self._reasons: list[str] = []
        self._last_line = ""
        self._parts: dict[Path, str] = {}
        self._tests: dict[str, Path] = {}
        self.record: dict[str, Any] = {"commit": commit, "gpu": gpu, "steps": {}}
        self._write()

    def _file(self, ending: str) -> Path:
        return self._stem.with_name(f"{self._stem.name}-{ending}")

    def say(self, line: str) -> None:
        """Print a line, and append it to the log."""
        print(line, flush=True)
        if REASON.search(line):
            self._reasons.append(line.strip())
        self._last_line = line.strip() or self._last_line
        if self._left > 0:
            self._left -= len(line) + 1
            self._log.write(line + "\n")
            self._log.flush()

    def part(self, step: str, part: str) -> Path:
        """The JSON file that a command of the running step writes."""
        path = self._file(f"{step}.{part}.json")
        self._parts[path] = part
        return path

    def junit(self, name: str) -> Path:
        """The file for the report of tests."""
        self._tests[name] = self._file(f"{name}.xml")
        return self._tests[name]

    def finish(self, step: str, status: int, seconds: float) -> None:
        """Record what the step measured, and print how it ended."""
        found: dict[str, Any] = {"status": status, "seconds": round(seconds, 1)}
        for path, part in self._parts.items():
            with contextlib.suppress(OSError, ValueError):
                found[part] = read_json(path)
        if step in self._tests:
            found["tests"] = gpu_summary.tests_of(self._tests[step])
        if status and not found.get("tests"):
            ends = self._reasons[:1] + self._reasons[1:][-1:] or [self._last_line]
            found["reason"] = " | ".join(dict.fromkeys(ends))
        self._reasons.clear()
        self.record["steps"][step] = found
        self._write()
        for path in self._parts:
            path.unlink(missing_ok=True)
        self._parts.clear()
        self.say(f"= {step}: {gpu_summary.status_of(found)} after {seconds:.0f} s")

    def _write(self) -> None:
        """Write the record of all steps."""
        write_json(self._file("figures.json"), self.record, indent=None)

    def summary(self) -> str:
        """The tables printed last, and written too."""
        text = gpu_summary.summary(self.record)
        self._file("summary.txt").write_text(text + "\n")
        return text

    def exit_status(self) -> int:
        """0, or 10 + the position among all steps of the first that failed."""
        order = list(STEPS)
        failed = [step for step, found in self.record["steps"].items() if found["status"]]
        return 10 + order.index(failed[0]) if failed else 0
