"""Compile every GPU kernel for its targets, without a GPU, and fail where one spills registers.

    python -m benchmarks.studies.compile_kernels          # or: make compile-kernels
    python -m benchmarks.studies.compile_kernels --only triton --vocabulary 32000

Triton kernels are compiled as their launchers call them: the arguments of a launch are recorded,
with what Triton infers from them (16-byte alignment, a stride of 1), and compiled for NVIDIA sm_80,
sm_90 and sm_100 and for AMD gfx942. CUDA sources are compiled with the flags of setup.py for sm_80
and sm_90.

The study prints one line for each kernel: target, registers of a thread, shared memory, spilled
bytes. For Triton on NVIDIA it adds how many instructions access global memory in each width. For
the loop over a row (sass.py) it adds instructions per score, 16-byte loads of a thread in flight,
and how many programs fit on a multiprocessor at a time.

Without Triton or nvcc a line says so, and their kernels are skipped. The exit status is 1 where a
kernel does not compile or spills registers; in a row kernel only spills inside the loop over a row
count.
"""

import importlib.util
import itertools
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.harness.command import ROOT, make_parser, positive_int, some_of
from benchmarks.harness.config import DTYPES
from benchmarks.studies import sass
from benchmarks.studies.launches import Launch, launches_of

CUDA_ARCHS = ("80", "90")
#: Triton's name of the backend, the architecture, and the threads of a warp.
Target = tuple[str, Any, int]
TRITON_TARGETS: tuple[Target, ...] = (
    ("cuda", 80, 32),
    ("cuda", 90, 32),
    ("cuda", 100, 32),
    ("hip", "gfx942", 64),
)
#: Bytes of shared memory that a program can use on a target.
SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10, "gfx942": 64 << 10}
#: Kernels whose programs read whole rows, and nothing else in their loop.
ROW_KERNELS = re.compile("triton (score_entropy|reverse_step|row_sums) ")
#: Triton's names of pointers to tensors of a dtype.
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.int32: "*i32",
}


@dataclass(frozen=True)
class Report:
    """What a compiler reports of one kernel on one target.

    Attributes:
        harmless: the kernel spills only outside its loop over a row, so once for each row.
    """

    target: str
    kernel: str
    registers: int
    shared: int
    spilled: int
    note: str = ""
    harmless: bool = False

    def __str__(self) -> str:
        spilled = f"SPILLS {self.spilled} B" if self.spilled else "no spills"
        spilled += " outside the loop" * (self.spilled > 0 and self.harmless)
        return (
            f"{self.target:7} {self.kernel:62} {self.registers:4} registers "
            f"{self.shared:6} B shared  {spilled}{self.note}"
        )


# --- Triton -----------------------------------------------------------------------------------


def recorded(launch: Launch, arch: Any) -> tuple[Any, dict[str, Any]]:
    """(Triton source, options) of the kernel that a launch asks for on that target."""
    from triton.compiler import ASTSource

    from sedd_fast.kernels import settings, tiles

    with (
        mock.patch.object(launch.kernel, "run") as run,
        mock.patch.object(tiles, "shared_memory", return_value=SHARED[arch]),
        mock.patch.object(settings, "counted", return_value=arch in (80, 90)),
    ):
        launch.run()
    (_, given) = run.call_args
    names = launch.kernel.arg_names
    values = dict(zip(names, run.call_args.args, strict=False))
    values.update({name: given[name] for name in names if name in given})
    options = {n: v for n, v in given.items() if n not in names and n not in ("grid", "warmup")}
    declared = {p.name for p in launch.kernel.params if p.is_constexpr}
    plain = {p.name for p in launch.kernel.params if p.do_not_specialize}
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(names):
        if name in declared:
            signature[name], constants[(index,)] = "constexpr", values[name]
            continue
        signature[name] = argument_type(values[name], name not in plain)
        for path, part, kind in parts(values[name], signature[name], (index,)):
            if kind == "constexpr":
                constants[path] = part
            elif is_aligned(part, name not in plain):
                attributes[path] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes), options


def argument_type(value: Any, specialized: bool) -> Any:
    """Triton's type of an argument; of a tuple, a tuple of types."""
    if isinstance(value, tuple):
        # Triton specializes all that is in a tuple.
        kinds = [argument_type(part, True) for part in value]
        return type(value)(*kinds) if hasattr(value, "_fields") else tuple(kinds)
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if specialized and value == 1:
        return "constexpr"
    return "i64" if value >= 2**31 else "i32"


def is_aligned(value: Any, specialized: bool) -> bool:
    """Whether Triton knows the argument to be a multiple of 16."""
    if isinstance(value, Tensor):
        return value.data_ptr() % 16 == 0
    return isinstance(value, int) and specialized and value % 16 == 0


def parts(value: Any, kind: Any, path: tuple[int, ...]) -> Iterator[tuple[Any, ...]]:
    """(path, value, type) of an argument, or of everything in a tuple."""
    if not isinstance(value, tuple):
        yield path, value, kind
        return
    for index, (part, of) in enumerate(zip(value, kind, strict=True)):
        yield from parts(part, of, (*path, index))


def triton_reports(
    vocab: int, dtypes: tuple[torch.dtype, ...], targets: tuple[Target, ...], quick: bool
) -> Iterator[Report | str]:
    """Compile every launch for those targets, in as many processes as there are cores.

    If ``quick``, one launch of each kernel for all targets but the first. A text is a failure.
    """
    jobs, met = [], set()
    for dtype in dtypes:
        for number, launch in enumerate(launches_of(dtype, vocab, dtype == dtypes[0])):
            of = targets[:1] if quick and (dtype, launch.kernel) in met else targets
            met.add((dtype, launch.kernel))
            jobs += [(dtype, vocab, dtype == dtypes[0], number, target) for target in of]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        yield from pool.map(triton_report, jobs, chunksize=len(targets))


def target_name(target: Target) -> str:
    """The name of a target: sm_90 or gfx942."""
    return f"sm_{target[1]}" if target[0] == "cuda" else str(target[1])


def triton_report(job: tuple[torch.dtype, int, bool, int, Target]) -> Report | str:
    """Compile the launch of that number for a target; a text is a failure."""
    import triton
    from triton.backends.compiler import GPUTarget

    dtype, vocab, transition, number, target = job
    launch = next(itertools.islice(launches_of(dtype, vocab, transition), number, None))
    name = f"triton {launch.name} {str(dtype).removeprefix('torch.')}"
    source, options = recorded(launch, target[1])
    try:
        compiled = triton.compile(source, target=GPUTarget(*target), options=options)
    except (triton.TritonError, RuntimeError, ValueError, TypeError) as error:
        return f"{target[1]:7} {name} does not compile: {error}"
    return (amd_report if target[0] == "hip" else nvidia_report)(compiled, target, name)


def nvidia_report(compiled: Any, target: tuple[str, Any, int], name: str) -> Report:
    """The report of a kernel for NVIDIA, from the machine code's resource table and the PTX."""
    import triton.backends.nvidia as nvidia

    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        command = [shutil.which("cuobjdump") or str(tool), "--dump-resource-usage", file.name]
        if ROW_KERNELS.match(name):  # to disassemble takes as long as to compile
            command.insert(1, "-sass")
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ptx = compiled.asm["ptx"]
    note = f"; bits loaded {widths(ptx, 'ld')}; stored {widths(ptx, 'st')}"
    number = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    loop = sass.row_loop(said) if ROW_KERNELS.match(name) else None
    if loop is not None:
        item = 2 if "float16" in name else 4
        at_once = sass.programs(number["REG"], compiled.metadata.num_warps)
        note += (
            f"; {loop.instructions_per(item):.1f} instructions per score, "
            f"{loop.in_flight} loads in flight, {at_once} programs per multiprocessor"
        )
    return Report(
        f"sm_{target[1]}", name, number["REG"], compiled.metadata.shared,
        number["STACK"] + number["LOCAL"], note, loop is not None and loop.local == 0,
    )  # fmt: skip


def widths(ptx: str, operation: str) -> str:
    """How many instructions access global memory, by bits: "128 x 4, 16 x 9"."""
    found = re.findall(rf"{operation}\.global\S*?(?:\.v(\d))?\.b(\d+)", ptx)
    count = Counter(int(vector or 1) * int(bits) for vector, bits in found)
    return ", ".join(f"{width} x {count[width]}" for width in sorted(count, reverse=True)) or "-"


def amd_report(compiled: Any, target: tuple[str, Any, int], name: str) -> Report:
    """The report of a kernel for AMD, from the metadata in the assembly."""
    text = compiled.asm["amdgcn"]

    def number(key: str) -> int:
        return int(re.search(rf"\.{key}:\s*(\d+)", text).group(1))  # type: ignore[union-attr]

    # Scalar registers spill into vector registers and cost no memory.
    spilled = 4 * number("vgpr_spill_count") + number("private_segment_fixed_size")
    return Report(target[1], name, number("vgpr_count"), compiled.metadata.shared, spilled)


# --- CUDA ---------------------------------------------------------------------------------------


def cuda_reports(
    nvcc: str, build: dict[str, Any], dtype: torch.dtype | None, archs: list[str]
) -> Iterator[Report | str]:
    """Compile the CUDA objects of a dtype, or all, for those architectures; a text is a failure."""
    left_out = dict(build["CUDA_TYPES"]) if dtype is not None else {}
    left_out.pop(str(dtype).removeprefix("torch."), None)
    jobs = [
        (name, source, flags, arch)
        for name, (source, flags) in build["cuda_objects"]().items()
        for arch in archs
        if Path(name).stem.rpartition("_")[2] not in left_out
    ]

    def compiled(job: tuple[str, str, str, str]) -> tuple[tuple[str, ...], Any]:
        _, source, flags, arch = job
        command = (
            f"{nvcc} {build['NVCC_FLAGS']} {flags} -I{shlex.quote(str(ROOT / 'csrc'))} -Xptxas -v "
            f"-gencode=arch=compute_{arch},code=sm_{arch} -c {shlex.quote(str(ROOT / source))} "
            f"-o {os.devnull}"
        )
        return job, subprocess.run(
            shlex.split(command), capture_output=True, text=True, check=False
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (name, _, _, arch), done in pool.map(compiled, jobs):
            if done.returncode:
                yield f"sm_{arch:4} cuda {name} does not compile:\n{done.stdout}{done.stderr}"
            yield from ptxas_reports(done.stderr + done.stdout, f"sm_{arch}")


def ptxas_reports(said: str, target: str) -> Iterator[Report]:
    """One report for each kernel in the output of ``ptxas -v``."""
    for part in said.split("Compiling entry function")[1:]:
        numbers = [re.search(p, part) for p in (r"Used (\d+) reg", r"(\d+) bytes smem")]
        registers, shared = (int(found.group(1)) if found else 0 for found in numbers)
        spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", part))
        spilled = max(spilled, *(int(n) for n in re.findall(r"(\d+) bytes stack frame", part)))
        yield Report(target, f"cuda {kernel_name(part)}", registers, shared, spilled)


def kernel_name(said: str) -> str:
    """score_entropy_kernel<BFloat16, float, true> from its mangled name."""
    mangled = re.search(r"'(\w+)'", said)
    assert mangled is not None
    text = mangled.group(1)
    if filt := shutil.which("c++filt"):
        text = subprocess.run([filt, text], capture_output=True, text=True, check=True).stdout
    text = re.sub(r"sedd::|\(anonymous namespace\)::|^void |\(\w+Arguments\)\s*$", "", text.strip())
    return re.sub(r"sedd::|\(\w+\)$", "", text)


def main() -> int:
    """Compile and print; 1 where a kernel fails or spills."""
    parser = make_parser(__doc__)
    parser.add_argument("--only", choices=("triton", "cuda"), help="compile only these kernels")
    parser.add_argument(
        "--vocabulary",
        type=positive_int,
        default=50257,
        help="size of the vocabulary (%(default)s)",
    )
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), help="compile the kernels of one dtype only"
    )
    names = tuple(map(target_name, TRITON_TARGETS))
    parser.add_argument(
        "--targets",
        type=some_of(*names),
        default=names,
        help=f"with commas between (default: {', '.join(names)}); CUDA kernels only for "
        + " and ".join(f"sm_{arch}" for arch in CUDA_ARCHS),
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="for all targets but the first, one launch of each Triton kernel",
    )
    arguments = parser.parse_args()
    one = DTYPES.get(arguments.dtype)
    dtypes = tuple(DTYPES.values()) if one is None else (one,)
    targets = tuple(t for t in TRITON_TARGETS if target_name(t) in arguments.targets)
    reports: list[Iterator[Report | str]] = []
    if arguments.only != "cuda":
        if importlib.util.find_spec("triton") is None:
            print("Triton kernels: not compiled, Triton is missing (pip install triton)")
        else:
            reports.append(triton_reports(arguments.vocabulary, dtypes, targets, arguments.quick))
    if arguments.only != "triton":
        with mock.patch("setuptools.setup"):  # only its flags and lists are needed
            build = runpy.run_path(str(ROOT / "setup.py"))
        nvcc = build["find_nvcc"]()
        if nvcc is None:
            print("CUDA kernels: not compiled, nvcc is missing (set CUDA_HOME or PATH)")
        else:
            archs = [arch for arch in CUDA_ARCHS if f"sm_{arch}" in arguments.targets]
            reports.append(cuda_reports(nvcc, build, one, archs))
    count, failed = 0, 0
    for report in (report for some in reports for report in some):
        count += 1
        failed += isinstance(report, str) or (report.spilled > 0 and not report.harmless)
        print(report, flush=True)
    print(f"{count} kernels, {failed} failed or spill")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
