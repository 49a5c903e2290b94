"""Checks the row functions of the C++ kernels without Python, here or on an emulated Arm processor.

    python tests/helpers/check_rows.py                # this processor, every instruction set
    CXX=clang++ python tests/helpers/check_rows.py    # by another compiler
    python tests/helpers/check_rows.py --arm          # cross-compiled; runs in qemu

Compiles csrc/cpu and the program in tests/helpers/rows with the flags of setup.py. For the last two
commands warnings are errors. The exit status is 0; 1 where the program does not compile or a
comparison fails; 2 where a package is missing.
"""

import argparse
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
#: Where `make install` leaves its objects.
INSTALLED = ROOT / "build" / "objects" / "cpu"
PROGRAM = ("main", "head", "ordinary", "softmax", "special")
ARM_COMPILER = "aarch64-linux-gnu-g++"
#: Names of the emulator in Debian's packages qemu-user and qemu-user-static.
EMULATORS = ("qemu-aarch64", "qemu-aarch64-static")


def setup_functions() -> dict[str, Any]:
    """What setup.py defines: its flags, lists and functions."""
    with mock.patch("setuptools.setup"):
        return runpy.run_path(str(ROOT / "setup.py"))


def instruction_sets(setup: dict[str, Any]) -> list[str]:
    return ["baseline", *(setup["X86_SETS"] if setup["is_x86"]() else ())]


def compiled(
    setup: dict[str, Any], compiler: str, folder: Path, arm: bool = False, strict: bool = True
) -> Path | None:
    """The program, linked with csrc/cpu; None where it does not compile, or if strict warns.

    Where the module was built in that folder its objects are used, if not strict.
    """
    objects = setup["cpu_objects"](setup["is_x86"]() and not arm, compiler)
    # The program itself is not what is checked: with -O3 it takes three times as long to compile.
    objects |= {f"check_{n}.o": (f"tests/helpers/rows/{n}.cpp", "-O1") for n in PROGRAM}
    extra = f"-Werror -I{ROOT / 'csrc'}" if strict else setup["includes"]()
    lines = setup["rule"]("compile", f"{compiler} {setup['FLAGS']} {extra}")
    lines += setup["builds"]("compile", objects)
    target = folder / "check_rows"
    link = f"{compiler} -pthread{' -static' if arm else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join([*lines, setup["linked"](link, list(objects), target)])
    (folder / "check_rows.ninja").write_text(text)
    command = [setup["find_ninja"](), "-f", "check_rows.ninja"]
    return None if subprocess.run(command, cwd=folder, check=False).returncode else target


def check(command: list[str], wanted: str) -> bool:
    """Run the program with one instruction set."""
    environment = {**os.environ, "SEDD_FAST_ISA": wanted}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == 0 and f"row functions, {wanted}:" not in done.stdout:
        print(f"row functions, {wanted}: not checked, this processor does not have it")
        return True
    print(done.stdout, end="", flush=True)
    return done.returncode == 0


def main() -> int:
    """Compile and run; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arm", action="store_true", help="for Arm, in an emulator")
    arm = parser.parse_args().arm
    setup = setup_functions()
    if not arm:
        compiler = setup["find_compiler"]()
        folder = ROOT / "build" / Path(compiler).name if os.environ.get("CXX") else INSTALLED
        program = compiled(setup, compiler, folder, strict=folder != INSTALLED)
        if program is None:
            return 1
        found = [check([str(program)], name) for name in instruction_sets(setup)]
        return 0 if all(found) else 1
    emulator = next((name for name in EMULATORS if shutil.which(name)), None)
    if emulator is None or shutil.which(ARM_COMPILER) is None:
        print(
            "the check for Arm needs a cross-compiler and qemu: "
            "apt-get install g++-aarch64-linux-gnu qemu-user",
            file=sys.stderr,
        )
        return 2
    program = compiled(setup, ARM_COMPILER, ROOT / "build" / ARM_COMPILER, arm)
    return 0 if program is not None and check([emulator, str(program)], "baseline") else 1


if __name__ == "__main__":
    sys.exit(main())
