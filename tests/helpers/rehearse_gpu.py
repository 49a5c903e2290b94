"""Rehearse ``make gpu`` where there is no GPU: every step runs up to the first CUDA call.

    python tests/helpers/rehearse_gpu.py --python VENV/bin/python      # the three short plans
    python tests/helpers/rehearse_gpu.py --python VENV/bin/python --only build,smoke

VENV is an environment with the packages that the GPU machine has and no more; the step "build"
installs the package there. The tracked files are copied into a new folder without .git, and torch
reports an H100 in every process that is started from it. A step passes the rehearsal where it
succeeds, or stops because CUDA is missing; a missing package, file or option is a failure. What the
benchmarks do after their first CUDA call is rehearsed on the CPU, in tiny shapes.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Python runs this when it starts: torch, once imported, sees a GPU that no call reaches.
SITE = """
import importlib.abc, importlib.machinery, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "torch":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            answers = {"is_available": True, "device_count": 1, "current_device": 0,
                       "get_device_name": "NVIDIA H100 80GB HBM3", "get_device_capability": (9, 0)}
            for key, answer in answers.items():
                setattr(module.cuda, key, lambda *_, answer=answer: answer)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""
#: Errors of calls that need a GPU: of torch without CUDA and with it, of Triton, of the build.
NO_GPU = re.compile(
    r"not compiled with CUDA|Found no NVIDIA driver|no NVIDIA GPU|CUDA driver|0 active drivers|"
    r"Cannot find NVIDIA|CUDA error|libcuda|has no attribute '_cuda_\w+'|_cuda_\w+",
)
#: Errors that are failures of the rehearsal.
OURS = re.compile(
    r"ModuleNotFoundError|ImportError|No such file|FileNotFoundError|not a git|unrecognized arg"
)


#: The modules of benchmarks/ that the plans run, in tiny shapes on the CPU.
STUDIES = ("head_blocks", "largest_batch", "generation", "gpu_profile")
ON_CPU = {
    "run.py, on the CPU": (
        "benchmarks/run.py", "--quick", "--no-compile", "--suite", "ops,head,small",
        "--json", "all.json",
    ),
    **{
        f"{name}, on the CPU": (
            "-m", f"benchmarks.studies.{name}", "--device", "cpu", "--quick",
            "--json", f"{name}.json",
        )
        for name in STUDIES
    },
}  # fmt: skip


def copy(target: Path) -> None:
    """Copy the files that git tracks, and untracked ones that it does not ignore."""
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def rehearse(python: str, tree: Path, site: Path, arguments: list[str]) -> Path:
    """The results of the plan in the copied tree."""
    results = tree / "results"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    # No empty entry: it would put the current folder on the path, and so the package.
    paths = [str(site), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    # As on a fresh machine: not even an earlier rehearsal's install.
    uninstall = [python, "-m", "pip", "uninstall", "--yes", "--quiet", "sedd_fast"]
    subprocess.run(uninstall, check=True)
    command = [python, "benchmarks/on_gpu.py", "--results", str(results), "--commit", "rehearsal"]
    command += ["--patience", "8"]  # this machine may have few cores
    subprocess.run([*command, *arguments], cwd=tree, env=environment, check=False)
    return results


def on_cpu(python: str, tree: Path) -> dict[str, str]:
    """Whether each of ON_CPU runs to its end there."""
    found = {}
    for name, words in ON_CPU.items():
        done = subprocess.run([python, *words], cwd=tree, capture_output=True, text=True)
        found[name] = f"FAILS: {done.stderr[-600:]}" if done.returncode else "done"
    return found


def verdicts(results: Path) -> dict[str, str]:
    """ "done", "stops at CUDA", or what else stopped a step."""
    (figures,) = results.glob("*-figures.json")
    (log,) = results.glob("*-log.txt")
    parts = re.split(r"^= (\w+): .*$", log.read_text(), flags=re.MULTILINE)
    said = dict(zip(parts[1::2], parts[0::2], strict=False))
    found = {}
    for step, record in json.loads(figures.read_text())["steps"].items():
        text = said.get(step, "") + json.dumps(record)
        if wrong := OURS.search(text):
            found[step] = f"FAILS: {text[max(0, wrong.start() - 200) : wrong.end() + 200]}"
        elif record["status"] == 0:
            found[step] = "done"
        else:
            found[step] = "stops at CUDA" if NO_GPU.search(text) else f"FAILS: {text[-600:]}"
    return found


def main() -> int:
    """Run the command; 1 where a step fails for another reason than the missing GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help="the Python of the environment")
    parser.add_argument("--only", help="steps (default: those of the plans first, tune, compare)")
    args = parser.parse_args()
    arguments = ["--only", args.only] if args.only else ["--plan", "first,tune,compare"]
    with tempfile.TemporaryDirectory() as folder:
        tree, site = Path(folder) / "tree", Path(folder) / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE)
        copy(tree)
        found = verdicts(rehearse(args.python, tree, site, arguments))
        if not args.only:
            found |= on_cpu(args.python, tree)
    for step, verdict in found.items():
        print(f"{step:24} {verdict}")
    return 1 if any(verdict.startswith("FAILS") for verdict in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
