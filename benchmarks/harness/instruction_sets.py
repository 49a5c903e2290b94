"""Instruction sets: what the C++ kernels use, and what limits torch to the same.

``SEDD_FAST_ISA`` limits the kernels. Eager torch, the code that torch.compile makes, oneDNN and MKL
have environment variables of their own, which they read once per process: so each instruction set
is measured in processes of its own, and a ratio compares contenders of one process.

Not everything can be limited. torch has no vectors for SSE alone: for "baseline" torch.compile
writes scalar code, which the compiler may vectorise. A torch without TORCHINDUCTOR_CPP_MARCH (2.8)
compiles for the machine's own processor, so that the compiler may use wider vectors outside those
that torch.compile writes. MKL heeds its variable on Intel's processors only.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.harness.command import ROOT

#: From the widest vectors to the narrowest.
SETS = ("avx512", "avx2", "baseline")
#: Environment variables that limit torch and its libraries on x86-64.
TORCH = {
    "avx512": {},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",  # eager, and the vectors that torch.compile writes
        "TORCHINDUCTOR_CPP_MARCH": "x86-64-v3",  # of the compiler that torch.compile calls
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "baseline": {
        "ATEN_CPU_CAPABILITY": "default",
        "TORCHINDUCTOR_CPP_MARCH": "x86-64",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
}
#: ATEN_CPU_CAPABILITY -> bits of the vectors that torch.compile writes; 1 stands for none.
BITS = {"avx2": 256, "default": 1}
USED = """from sedd_fast.backends import cpp
print(cpp.unavailable() or cpp.kernels().instruction_set())"""


def limits(name: str) -> dict[str, str]:
    """The environment variables of a process in which that instruction set is measured."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return {"SEDD_FAST_ISA": name} | (TORCH[name] if is_x86 else {})


def refusal(names: Sequence[str]) -> str | None:
    """Why one of these instruction sets cannot be measured here, and the remedy; or None."""
    for name in names:
        used = used_by_kernels(name)
        if used not in SETS:
            return f"--isa {name}: the C++ kernels cannot be used: {used}"
        if used != name:
            has = ", ".join(SETS[SETS.index(used) :])
            return (
                f"--isa {name}: this processor does not have it, and the kernels would use {used}; "
                f"choose from {has}, or leave the option out"
            )
    return None


def used_by_kernels(name: str) -> str:
    """The instruction set that the C++ kernels use where ``name`` is asked for; without the
    kernels, the reason.
    """
    command = [sys.executable, "-c", USED]
    environment = os.environ | limits(name)
    done = subprocess.run(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.strip()


def limit_compiler() -> None:
    """Limit torch.compile by its own setting too, in a process that has ``limits``.

    The setting is part of what its cache of compiled code goes by, and ATEN_CPU_CAPABILITY is not.
    """
    bits = BITS.get(os.environ.get("ATEN_CPU_CAPABILITY", ""))
    if bits is not None:
        from torch._inductor import config

        config.cpp.simdlen = bits


def used_by_torch(compiling: bool) -> dict[str, str | None]:
    """What eager torch uses; and torch.compile, the vectors it writes and the compiler's target."""
    import torch

    used: dict[str, str | None] = {"eager": torch.backends.cpu.get_cpu_capability()}
    if not compiling:
        return used | {"compile": None}
    from torch._inductor import cpu_vec_isa

    vectors = str(cpu_vec_isa.pick_vec_isa())
    vectors = "no vectors" if vectors == "INVALID_VEC_ISA" else vectors
    return used | {"compile": f"{vectors}, -march={march() or 'native'}"}


def march() -> str | None:
    """The target that is set for the compiler that torch.compile calls; None for its default."""
    from torch._inductor import config

    found: Any = getattr(config.cpp, "march", None)
    return found


def remark() -> str | None:
    """A line where this torch does not heed TORCHINDUCTOR_CPP_MARCH; else None."""
    asked = os.environ.get("TORCHINDUCTOR_CPP_MARCH")
    if asked is None or march() == asked:
        return None
    return (
        f"this torch has no setting for the target of its compiler ({asked} was asked for): "
        "outside the vectors that torch.compile writes, its code may use wider ones"
    )
