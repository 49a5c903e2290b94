"""What a GPU executes in the loop over a row: instructions, loads in flight, registers.

The module reads the machine code of a kernel, as ``cuobjdump -sass`` prints it. The loop over a row
is the innermost one with the most 16-byte loads. Of the paths through it, the shortest one that
executes those loads is counted, because the code for rare states (x_t, x_0) is branched around.
"""

import heapq
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

#: Registers of a multiprocessor, and warps that it holds at most (sm_80, sm_90).
REGISTERS, MOST_WARPS = 65536, 64
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,5})\*/\s+(.*?);", re.MULTILINE)

Block = list[str]


@dataclass(frozen=True)
class RowLoop:
    """One path through a loop.

    Attributes:
        code: the instructions of the path.
        loaded: bytes that a thread loads from global memory.
        in_flight: loads issued before the first result of one of them is used.
    """

    code: tuple[str, ...]
    loaded: int
    in_flight: int

    def count(self, name: str) -> int:
        """The number of instructions whose name begins so."""
        return sum(_name(text).startswith(name) for text in self.code)

    @property
    def local(self) -> int:
        """The number of accesses to local memory, that is of spilled registers."""
        return self.count("LDL") + self.count("STL")

    def instructions_per(self, item: int) -> float:
        """Instructions for each score of ``item`` bytes."""
        return len(self.code) * item / self.loaded


def programs(registers: int, warps: int) -> int:
    """Programs that fit on a multiprocessor at a time, by its registers and warps."""
    return min(REGISTERS // (-(-registers // 8) * 8 * 32 * warps), MOST_WARPS // warps)


def row_loop(sass: str) -> RowLoop | None:
    """The loop over a row, or None where no loop loads anything.

    It is the loop that loads most bytes, among those with 16-byte loads only. Where there is none,
    the loads are narrow, and it is the loop that loads most bytes per instruction.
    """
    found = [loop for loop in map(_measured, _loops(sass)) if loop.loaded]
    vectorised = [loop for loop in found if loop.count("LDG") == _vector_loads(loop.code)]
    if vectorised:
        return max(vectorised, key=lambda loop: loop.loaded)
    return max(found, key=lambda loop: loop.loaded / len(loop.code), default=None)


def _measured(code: tuple[str, ...]) -> RowLoop:
    loads = [text for text in code if _name(text).startswith("LDG")]
    loaded = sum(_bits(text) for text in loads) // 8
    pending: set[int] = set()
    in_flight = 0
    for text in code:
        load = re.search(r"LDG\S*\s+R(\d+)(.*)", text)
        read = load[2] if load else text
        if any(int(number) in pending for number in re.findall(r"\bR(\d+)", read)):
            break
        if load:
            pending.update(range(int(load[1]), int(load[1]) + max(1, _bits(text) // 32)))
            in_flight += 1
    return RowLoop(code, loaded, in_flight)


def _loops(sass: str) -> Iterator[tuple[str, ...]]:
    """The instructions of the shortest path through every loop that executes its widest loads."""
    blocks, after = _graph(sass)
    for head, body in _natural_loops(blocks, after).items():
        via = max(body, key=lambda b: (sum(map(_bits, _loads(blocks[b]))), -b))
        there = [head] if via == head else _shortest(head, via, body, blocks, after)
        back = _shortest(via, head, body, blocks, after)
        if there is not None and back is not None:
            yield tuple(text for b in [*there[:-1], *back[:-1]] for text in blocks[b])


def _graph(sass: str) -> tuple[dict[int, Block], dict[int, list[int]]]:
    """Basic blocks by address, and the addresses of the blocks that follow each."""
    code = [(int(address, 16), text) for address, text in _INSTRUCTION.findall(sass)]
    starts = {code[0][0]}
    for (_, text), (following, _) in itertools.pairwise(code):
        if _name(text).startswith(("BRA", "EXIT", "RET", "BRX")):
            starts.add(following)
            starts.update(_targets(text))
    starts.update(target for _, text in code for target in _targets(text))
    order = sorted(starts)
    blocks: dict[int, Block] = {start: [] for start in order}
    at = 0
    for address, text in code:
        while at + 1 < len(order) and address >= order[at + 1]:
            at += 1
        blocks[order[at]].append(text)
    after = {}
    for start, following in zip(order, [*order[1:], None], strict=True):
        last = blocks[start][-1]
        ends = _name(last).startswith(("BRA", "EXIT", "RET", "BRX")) and not _conditional(last)
        after[start] = _targets(last) + ([] if ends or following is None else [following])
    return blocks, after


def _natural_loops(blocks: dict[int, Block], after: dict[int, list[int]]) -> dict[int, set[int]]:
    """Head of a loop -> its blocks, which reach a jump back to the head without passing it."""
    before: dict[int, list[int]] = {b: [] for b in blocks}
    for b, following in after.items():
        for f in following:
            before[f].append(b)
    found: dict[int, set[int]] = {}
    for b, following in after.items():
        for head in (f for f in following if f <= b):
            body, waiting = {head, b}, [b]
            while waiting:
                if (here := waiting.pop()) != head:
                    new = [p for p in before[here] if p not in body]
                    body.update(new)
                    waiting += new
            found.setdefault(head, set()).update(body)
    return found


def _shortest(
    start: int, goal: int, body: set[int], blocks: dict[int, Block], after: dict[int, list[int]]
) -> list[int] | None:
    """The path inside a loop with the fewest instructions; from a block to itself, once around."""
    heap: list[tuple[int, int, list[int]]] = [(0, start, [start])]
    seen: set[int] = set()
    while heap:
        length, here, path = heapq.heappop(heap)
        if here == goal and (len(path) > 1 or start != goal):
            return path
        if here in seen:
            continue
        seen.add(here)
        for f in after[here]:
            if f in body and (f not in seen or f == goal):
                heapq.heappush(heap, (length + len(blocks[here]), f, [*path, f]))
    return None


def _name(text: str) -> str:
    words = text.split()
    return words[1] if words[0].startswith("@") else words[0]


def _conditional(text: str) -> bool:
    return text.startswith("@") or re.search(r"^BRA\S*\s+!?U?P\d", text) is not None


def _targets(text: str) -> list[int]:
    if not _name(text).startswith("BRA"):
        return []
    found = re.search(r"0x([0-9a-f]+)", text)
    return [int(found[1], 16)] if found else []


def _loads(block: Block) -> list[str]:
    return [text for text in block if _name(text).startswith("LDG")]


def _vector_loads(code: tuple[str, ...]) -> int:
    return sum(_bits(text) == 128 for text in code if _name(text).startswith("LDG"))


def _bits(text: str) -> int:
    """Bits that a load or store moves for each thread."""
    parts = _name(text).split(".")
    widths = {"128": 128, "64": 64, "U16": 16, "S16": 16, "U8": 8, "S8": 8}
    return next((widths[part] for part in parts if part in widths), 32)
