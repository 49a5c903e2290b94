"""Reading a kernel's machine code: the loop over a row, what a score costs in it, what waits."""

import pytest

from benchmarks.studies import sass

#: A loop of two 16-byte loads with a branch around what is rare, after one of narrow loads.
CODE = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E.U16 R2, [R4.64] ;
        /*0020*/                   IADD3 R4, R4, 0x2, RZ ;
        /*0030*/              @P0  BRA 0x10 ;
        /*0040*/                   LDG.E.128 R8, [R4.64] ;
        /*0050*/                   LDG.E.128 R12, [R4.64+0x800] ;
        /*0060*/                   ISETP.GT.AND P1, PT, R20, R21, PT ;
        /*0070*/                   FADD R16, R10, R17 ;
        /*0080*/              @!P1 BRA 0xc0 ;
        /*0090*/                   STL [R1], R8 ;
        /*00a0*/                   FADD R8, R8, R9 ;
        /*00b0*/                   LDL R8, [R1] ;
        /*00c0*/                   FADD R16, R14, R16 ;
        /*00d0*/              @P2  BRA 0x40 ;
        /*00e0*/                   EXIT ;
        /*00f0*/                   BRA 0xf0 ;
"""


def test_the_loop_over_a_row_is_the_one_with_the_wide_loads_the_short_way_round():
    loop = sass.row_loop(CODE)
    assert loop.loaded == 32
    assert loop.in_flight == 2
    assert len(loop.code) == 7  # of ten: what is branched around is left out
    assert loop.instructions_per(2) == 7 / 16
    assert loop.local == 0


def test_registers_spilled_on_the_way_round_are_seen():
    loop = sass.row_loop(CODE.replace("@!P1 BRA 0xc0", "NOP"))
    assert loop.local == 2
    assert len(loop.code) == 10


def test_a_load_that_is_used_at_once_hides_nothing():
    loop = sass.row_loop(CODE.replace("[R4.64+0x800]", "[R8.64+0x800]"))
    assert loop.in_flight == 1
    used = CODE.replace("FADD R16, R10, R17", "NOP").replace(
        "LDG.E.128 R12, [R4.64+0x800]", "FADD R16, R8, R17"
    )
    assert sass.row_loop(used).in_flight == 1


def test_without_wide_loads_it_is_the_loop_that_loads_most_for_its_length():
    assert sass.row_loop(CODE.replace("LDG.E.128", "LDG.E.64")).loaded == 16
    assert sass.row_loop(CODE.replace("LDG", "LDS")) is None


@pytest.mark.parametrize(
    ("registers", "warps", "programs"),
    [(64, 4, 8), (65, 4, 7), (72, 4, 7), (80, 4, 6), (96, 4, 5), (128, 4, 4), (24, 4, 16)],
)
def test_programs_that_a_multiprocessor_has_registers_for(registers, warps, programs):
    assert sass.programs(registers, warps) == programs
