"""The loops of the C++ kernels are vector code: no scalar arithmetic, and full registers.

GCC compiles comparisons and selections of vectors wider than a register to scalar code, which is
ten times slower and passes every other test. So these tests read the instructions of the compiled
module.
"""

import importlib.util
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.machine_code import (
    TYPES,
    Disassembly,
    Loop,
    arithmetic,
    complaint,
    innermost_loops,
    multiplying_loops,
    widths,
)

#: Instruction set -> the kind of its registers, for processors that setup.py knows.
X86 = {"baseline": "xmm", "avx2": "ymm", "avx512": "zmm"}
REGISTERS = {"x86_64": X86, "amd64": X86, "aarch64": {"baseline": "v"}, "arm64": {"baseline": "v"}}
SETS = REGISTERS.get(platform.machine().lower(), {})


@pytest.fixture(scope="module")
def module() -> Disassembly:
    spec = importlib.util.find_spec("sedd_fast._cpu")
    if spec is None or spec.origin is None:
        pytest.skip("no C++ kernels here")
    if not SETS:
        pytest.skip("registers unknown for this processor")
    if shutil.which("objdump") is None:
        pytest.skip("no objdump here: install binutils")
    code = Disassembly.of(Path(spec.origin))
    if not any("Row<" in name for name in code.names.values()):
        pytest.skip("the symbols of the compiled module are stripped")
    return code


@pytest.mark.parametrize("of", TYPES)
def test_the_absorbing_loss_with_gradient_is_vector_code(module, of):
    functions = module.gradient_functions(of)
    sets = {re.sub(r".*\bsedd::(\w+)::.*", r"\1", name): at for at, name in functions.items()}
    assert sets.keys() >= SETS.keys(), f"not compiled for every instruction set: {functions}"
    problems = []
    for name, address in sets.items():
        loops = multiplying_loops(module, address)
        assert len(loops) >= 2, f"{name}: one loop has streaming stores, another has not"
        # avx512_bf16 has the registers of avx512.
        register = SETS[name.split("_")[0]]
        found = [complaint(loop, register) for loop in loops]
        problems += [f"{name}: {problem}" for problem in found if problem]
    assert not problems


@pytest.mark.parametrize("left", ["Panels", "Rows", "Columns"])
def test_the_sums_of_a_tile_stay_in_registers(module, left):
    """The innermost loop of a product reads its operands, and nothing else of memory."""
    product = re.compile(rf"sedd::(\w+)::.*\bmultiply(?:_in_memory)?<float, .*\b{left}<float> ?>")
    sets = {found[1]: at for at, name in module.names.items() if (found := product.search(name))}
    assert sets.keys() >= SETS.keys(), f"not compiled for every instruction set: {sets}"
    problems = []
    for name, address in sets.items():
        loops = innermost_loops(module.instructions(address))
        loop = max(loops, key=lambda loop: sum(i.multiplies for i in loop))
        count = sum(i.multiplies for i in loop)
        on_stack = [i for i in loop if i.register and re.search(r"%rsp|\bsp\b", i.operands)]
        if count < 12 or complaint(loop, SETS[name]) or on_stack:
            problems.append(f"{name}: {count} multiply, {len(on_stack)} on the stack")
    assert not problems


def disassembly(*lines: str) -> Disassembly:
    """A function at 100, an instruction every four bytes."""
    body = "\n".join(f"     {0x100 + 4 * k:x}:\t{line}" for k, line in enumerate(lines))
    return Disassembly(f"0000000000000100 <f(int)>:\n{body}\n\n0000000000000900 <g()>:\n")


def loops_of(*lines: str) -> list[Loop]:
    return multiplying_loops(disassembly(*lines), 0x100)


VECTOR = (
    "vmovups (%rdi,%rax,1),%ymm1",
    "vmaxps %ymm1,%ymm3,%ymm1",
    "vpmaxsd %ymm1,%ymm3,%ymm2",
    "vpcmpd $0x1,%ymm1,%ymm3,%k1",
    "vfmadd213ps 0x40(%rip),%ymm1,%ymm2        # 1234 <.LC0+0x4>",
    "vcvtps2ph $0x0,%ymm2,%xmm2",
    "cmp    %rax,%rdx",
    "jne    100 <f(int)>",
    "ret",
)
SCALAR = (
    "vmovss (%rdi,%rax,4),%xmm1",
    "vucomiss %xmm1,%xmm0",
    "jp     124 <f(int)+0x24>",
    "vmulps %ymm2,%ymm3,%ymm3",
    "vcvttss2si %xmm1,%ecx",
    "vmulss %xmm1,%xmm2,%xmm3",
    "cmp    %rax,%rdx",
    "jne    100 <f(int)>",
    "ret",
    "vcvtsi2ss %ecx,%xmm1,%xmm1",
    "jmp    10c <f(int)+0xc>",
)


def test_a_vector_loop():
    (loop,) = loops_of(*VECTOR)
    assert arithmetic(loop) == {"vector": 3}
    assert widths(loop) == {"ymm": 1}
    assert complaint(loop, "ymm") is None
    assert complaint(loop, "zmm") is not None


def test_a_scalar_loop_is_refused():
    """Code that was moved out of line, and jumps back into the loop, belongs to it."""
    (loop,) = loops_of(*SCALAR)
    assert arithmetic(loop) == {"scalar": 4, "vector": 1}
    assert complaint(loop, "ymm") == "the loop at 100 has 4 scalar and 1 vector instructions"


def test_arm():
    (loop,) = loops_of(
        "ldr\tq2, [x3, #32]",
        "fcmgt\tv0.4s, v3.4s, v2.4s",
        "fmla\tv2.4s, v0.4s, v11.s[0]",
        "fmov\tv4.4s, #1.0e+00",
        "b.ne\t100 <f(int)>  // b.any",
        "ret",
    )
    assert arithmetic(loop) == {"vector": 2}
    assert complaint(loop, "v") is None
    (loop,) = loops_of("ldr\ts2, [x3]", "fmul\ts2, s2, s0", "cbnz\tx0, 100 <f(int)>", "ret")
    assert complaint(loop, "v") is not None


INNER = ("mulps  %xmm0,%xmm1", "jne    108 <f(int)+0x8>")


@pytest.mark.parametrize(
    "outer",
    [
        ("nop", "addss  %xmm0,%xmm1", *INNER, "mulsd  %xmm0,%xmm1", "jne    104 <f(int)+0x4>"),
        ("nop", "nop", *INNER, "mulsd  %xmm0,%xmm1", "jne    108 <f(int)+0x8>"),
        # A way round the outer loop without the inner one.
        ("je     110 <f>", "je     110 <f>", *INNER, "mulsd  %xmm0,%xmm1", "jne    104 <f>"),
    ],
    ids=["around", "same start", "two entries"],
)
def test_only_the_innermost_loop_counts(outer):
    (loop,) = loops_of(*outer, "ret")
    assert [i.address for i in loop] == [0x108, 0x10C]


def test_functions_that_are_called_count():
    calls = disassembly("call   900 <g()>", "jmp    900 <g()>")
    inside = Disassembly(
        "0000000000000100 <f(int)>:\n  100:\tcall   900 <g()>\n  104:\tret\n\n"
        "0000000000000900 <g()>:\n  900:\tmulss  %xmm0,%xmm1\n  904:\tjne    900 <g()>\n"
    )
    assert multiplying_loops(calls, 0x100) == []
    assert len(multiplying_loops(inside, 0x100)) == 1


@pytest.mark.parametrize(
    "space", ["(anonymous namespace)::", "sedd::avx2::(anonymous namespace)::"]
)
def test_names_of_the_functions(space):
    def names() -> Iterator[str]:
        for of in ("float", f"{space}BFloat16", f"{space}Half"):
            for row in (f"{of}, float, float", f"{of}, double, float"):
                yield f"{space}Row<{row}>::sums_and_gradient(void const*, void*, long, bool)"
                yield f"{space}Row<{row}>::sums_and_fp32_gradient(void const*, void*, long, bool)"
        yield f"{space}Row<float, float, float>::sums_and_gradient(void*, bool) [clone .cold]"

    code = Disassembly("".join(f"{k:016x} <{name}>:\n" for k, name in enumerate(names())))
    assert [[*code.gradient_functions(of)] for of in TYPES] == [[0], [4], [8]]


def test_code_without_a_loop():
    assert innermost_loops(disassembly("mulss  %xmm0,%xmm1", "ret").instructions(0x100)) == []
