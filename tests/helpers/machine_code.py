"""The inner loops of compiled functions, read from the output of objdump.

``python tests/helpers/machine_code.py FILE [OBJDUMP]`` prints what the gradient loops of an object
file or of the compiled module hold: ``rows_avx2.o``, or ``sedd_fast/_cpu.*.so``.
"""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Element types of rows, as C++ names them.
TYPES = ("float", "BFloat16", "Half")
HEADER = re.compile(r"^([0-9a-f]+) <(.+)>:$", re.MULTILINE)
LINE = re.compile(r"^\s*([0-9a-f]+):\s+(?:(?:bnd|notrack|rep|lock) )*([\w.]+)\s*(.*?)\s*(?://.*)?$")
#: Destination of a jump, which may follow the register that a jump of Arm tests.
TARGET = re.compile(r"(?:^|, )(?:0x)?([0-9a-f]+)(?: <.*>)?$")
#: Instructions that only move floating-point numbers.
MOVES = re.compile(r"v?(mov|unpck|shuf|insert|extract|broadcast|perm|blend|lddq)")
#: An instruction on integers begins with p or vp: vpmaxsd is none of these.
X86_PACKED = re.compile(r"(?!v?p).*(p[sd]$|p[sd]2)")
X86_SCALAR = re.compile(r"(?!v?p).*(s[sd]$|s[sd]2|2s[sd])")
ARM_FLOAT = re.compile(r"f(?!mov)|[su]cvtf")
MULTIPLY = re.compile(r"v?mul[sp][sd]$|vfn?m(add|sub)|fn?mul|fml[as]|fn?m(add|sub)")


@dataclass(frozen=True)
class Instruction:
    """One line of the disassembly."""

    address: int
    mnemonic: str
    operands: str

    @property
    def arithmetic(self) -> str | None:
        """ "vector" or "scalar" for floating-point arithmetic, None for the rest."""
        name = self.mnemonic
        if MOVES.match(name):
            return None
        if ARM_FLOAT.match(name):
            return "vector" if re.match(r"v\d", self.operands) else "scalar"
        if X86_PACKED.match(name):
            return "vector"
        return "scalar" if X86_SCALAR.match(name) else None

    @property
    def multiplies(self) -> bool:
        return bool(MULTIPLY.match(self.mnemonic))

    @property
    def register(self) -> str:
        """The kind of its widest register: zmm, ymm, xmm or v; "" if there is none."""
        kinds = set(re.findall(r"%(xmm|ymm|zmm)|\b(v)\d", self.operands))
        found = {x86 or arm for x86, arm in kinds}
        return next((kind for kind in ("zmm", "ymm", "xmm", "v") if kind in found), "")

    @property
    def jumps(self) -> bool:
        arm = re.match(r"(b|b\..*|cbn?z|tbn?z)$", self.mnemonic)
        return self.mnemonic.startswith("j") or bool(arm)

    @property
    def falls_through(self) -> bool:
        return not re.match(r"(jmpq?|b|br|retq?|ud2|udf)$", self.mnemonic)

    @property
    def target(self) -> int | None:
        """The address that it jumps to or calls."""
        calls = self.mnemonic in ("call", "callq", "bl")
        found = TARGET.search(self.operands) if self.jumps or calls else None
        return int(found[1], 16) if found else None


Loop = list[Instruction]
#: A node, and those that its edges lead to.
Graph = dict[int, list[int]]


class Disassembly:
    """The functions of a file, by address. `text` is the output of objdump."""

    def __init__(self, text: str) -> None:
        headers = list(HEADER.finditer(text))
        ends = [header.start() for header in headers[1:]] + [len(text)]
        self.names: dict[int, str] = {}
        self._bodies: dict[int, str] = {}
        for header, end in zip(headers, ends, strict=True):
            address = int(header[1], 16)
            self.names[address] = header[2]
            self._bodies[address] = text[header.end() : end]

    @classmethod
    def of(cls, path: Path, objdump: str = "objdump") -> "Disassembly":
        command = [objdump, "-d", "-C", "--no-show-raw-insn", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return cls(done.stdout)

    def instructions(self, address: int) -> list[Instruction]:
        """The instructions of the function at this address."""
        lines = (LINE.match(line) for line in self._bodies[address].splitlines())
        return [Instruction(int(line[1], 16), line[2], line[3]) for line in lines if line]

    def reached(self, first: int) -> Iterator[list[Instruction]]:
        """The function at this address and those that it calls or ends in."""
        waiting, seen = [first], {first}
        while waiting:
            body = self.instructions(waiting.pop())
            yield body
            called = {i.target for i in body if i.target in self.names} - seen
            seen |= called
            waiting += called

    def gradient_functions(self, of: str) -> dict[int, str]:
        """The functions ``Row<of, float, float>::sums_and_gradient``: address -> name.

        They compute the absorbing loss of a row of this type, and its gradient.
        """
        # A type in an unnamed namespace is spelled with its namespaces.
        row = rf"Row<(?:[\w:()]| namespace)*\b{of}, float, float>"
        # Nothing follows its parameters: else it is a part that the compiler has split off.
        wanted = re.compile(rf"{row}::sums_and_gradient\([^()]*\)$")
        return {address: name for address, name in self.names.items() if wanted.search(name)}


def innermost_loops(function: list[Instruction]) -> list[Loop]:
    """The loops of a function that have no loop inside, each in order of addresses.

    A loop is a set of instructions each of which leads to every other one. So code that the
    compiler moved out of line, and that jumps back into a loop, belongs to the loop.
    """
    place = {instruction.address: k for k, instruction in enumerate(function)}
    after: Graph = {}
    for k, instruction in enumerate(function):
        target = instruction.target if instruction.jumps else None
        jump = None if target is None else place.get(target)
        following = [k + 1] if instruction.falls_through and k + 1 < len(function) else []
        after[k] = following if jump is None else [*following, jump]
    return [[function[k] for k in sorted(loop)] for loop in _inner(after, after)]


def _inner(part: Graph, whole: Graph) -> list[set[int]]:
    """The innermost cycles in a part of a graph: what stays without the edges of outer ones."""
    found: list[set[int]] = []
    for cycle in _cycles(part):
        entries = {n for k, nexts in whole.items() if k not in cycle for n in nexts if n in cycle}
        inside = {k: [n for n in part[k] if n in cycle] for k in cycle}
        cut = {edge for entry in entries for edge in _outer_edges(inside, entry)}
        rest = {k: [n for n in nexts if (k, n) not in cut] for k, nexts in inside.items()}
        # A cycle without an entry is code that only a table of jumps leads to.
        found += (_inner(rest, whole) if cut else []) or [cycle]
    return found


def _outer_edges(cycle: Graph, entry: int) -> set[tuple[int, int]]:
    """The edges back to an entry of a cycle, without those of a loop inside that also starts there.

    An edge is an outer one if the way round over it holds all of the way round over another edge.
    """
    before: Graph = {k: [] for k in cycle}
    for k, nexts in cycle.items():
        for n in nexts:
            before[n].append(k)
    ways = {}
    for last in before[entry]:
        way, waiting = {entry}, [last]
        while waiting:
            k = waiting.pop()
            if k not in way:
                way.add(k)
                waiting += before[k]
        ways[last] = way
    outer = [last for last, way in ways.items() if any(other < way for other in ways.values())]
    return {(last, entry) for last in outer or ways}


def _cycles(after: Graph) -> list[set[int]]:
    """The strongly connected components that have an edge (Tarjan's algorithm)."""
    found: list[set[int]] = []
    order: dict[int, int] = {}  # when the search came to a node
    low: dict[int, int] = {}  # the earliest node on the stack that is reached from it
    stack: list[int] = []
    for start in after:
        path = [] if start in order else [(start, iter(after[start]))]
        while path:
            k, rest = path[-1]
            if k not in order:
                order[k] = low[k] = len(order)
                stack.append(k)
            for n in rest:
                if n not in order:
                    path.append((n, iter(after[n])))
                    break
                low[k] = min(low[k], low[n])
            else:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[k])
                if low[k] == order[k]:
                    cut = stack.index(k)
                    component = set(stack[cut:])
                    del stack[cut:]
                    # A finished component must not lower the numbers of others.
                    low.update(dict.fromkeys(component, len(after)))
                    if len(component) > 1 or k in after[k]:
                        found.append(component)
    return found


def multiplying_loops(code: Disassembly, address: int) -> list[Loop]:
    """The innermost loops with a multiplication, of the function and of those that it calls."""
    loops = [loop for body in code.reached(address) for loop in innermost_loops(body)]
    return [loop for loop in loops if any(i.multiplies for i in loop)]


def arithmetic(loop: Loop) -> Counter[str]:
    """How many floating-point instructions are "vector" and how many "scalar", without moves."""
    return Counter(kind for i in loop if (kind := i.arithmetic))


def widths(loop: Loop) -> Counter[str]:
    """The kinds of registers of its vector multiplications."""
    return Counter(i.register for i in loop if i.multiplies and i.arithmetic == "vector")


def complaint(loop: Loop, register: str) -> str | None:
    """What is wrong with a loop that should be vector code in these registers, or None."""
    counts, where = arithmetic(loop), f"the loop at {loop[0].address:x}"
    if counts["scalar"]:
        return f"{where} has {counts['scalar']} scalar and {counts['vector']} vector instructions"
    if others := {kind: n for kind, n in widths(loop).items() if kind != register}:
        return f"{where} multiplies in registers {others} instead of {register}"
    return None


def main(path: str, objdump: str = "objdump") -> None:
    code = Disassembly.of(Path(path), objdump)
    for of in TYPES:
        for address, name in code.gradient_functions(of).items():
            print(name)
            for loop in multiplying_loops(code, address):
                counts, registers = arithmetic(loop), dict(widths(loop))
                print(f"  {loop[0].address:x}: {len(loop)} instructions,", end=" ")
                print(f"{counts['vector']} vector and {counts['scalar']} scalar;", end=" ")
                print(f"multiplications in {registers or 'no vectors'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
