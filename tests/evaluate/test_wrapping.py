"""Wrapping of texts into blocks of tokens."""

import numpy as np
import pytest
import torch

from sedd_fast.data.blocks import Blocks
from sedd_fast.data.tokenizers import ByteTokenizer
from sedd_fast.evaluate.wrapping import Wrapped, wrap
from sedd_fast.names import WRAPS

EOT = ByteTokenizer().eot


def test_sedd_wrapping_joins_rows():
    wrapped = wrap(["abcd", "", "ef"], ByteTokenizer(), 4)
    (blocks,) = wrapped.blocks()
    assert blocks.tolist() == [[97, 98, 99, 100], [EOT, EOT, 101, 102]]
    assert (wrapped.left_over, wrapped.block_length, len(wrapped)) == (1, 4, 2)
    assert wrapped.chars_per_token == pytest.approx(6 / 9)


def test_mdlm_wrapping_puts_end_of_text_around():
    wrapped = wrap(["abcd", "ef"], ByteTokenizer(), 5, "mdlm")
    (blocks,) = wrapped.blocks()
    assert blocks.tolist() == [[EOT, 97, 98, 99, EOT], [EOT, 100, EOT, 101, EOT]]
    assert (wrapped.left_over, wrapped.block_length) == (2, 5)
    assert wrapped.chars_per_token == pytest.approx(6 / (8 * 5 / 3))


def test_separate_rows_are_left_whole():
    wrapped = wrap(["abcdefg", "", "hi", "jk"], ByteTokenizer(), 4, "separate")
    by_length = {blocks.shape[1]: blocks.tolist() for blocks in wrapped.blocks()}
    assert by_length == {
        1: [[EOT]],
        3: [[104, 105, EOT], [106, 107, EOT]],
        4: [[97, 98, 99, 100], [101, 102, 103, EOT]],
    }
    assert wrapped.left_over == 0


def test_a_few_blocks_stand_evenly_spaced_over_the_text():
    text = "".join(map(chr, range(32, 126)))  # 94 characters and end-of-text: 31 blocks of 3
    (chosen,) = wrap([text], ByteTokenizer(), 3).blocks(4)
    assert chosen[:, 0].tolist() == [32 + 3 * number for number in (0, 10, 20, 30)]


@pytest.mark.parametrize("how", WRAPS)
def test_as_many_blocks_as_asked_for(how):
    wrapped = wrap(["ab"] * 50, ByteTokenizer(), 6, how)
    chosen = wrapped.blocks(5)
    assert sum(len(blocks) for blocks in chosen) == 5
    every = torch.cat([blocks for blocks in wrapped.blocks() if blocks.shape[1] == 6] or chosen)
    assert all(row in every.tolist() for row in chosen[-1].tolist())


def test_short_text_is_one_short_block():
    assert [b.shape for b in wrap(["ab"], ByteTokenizer(), 100).blocks()] == [(1, 3)]
    assert [b.shape for b in wrap(["ab"], ByteTokenizer(), 100, "mdlm").blocks()] == [(1, 5)]


def test_blocks_of_a_run():
    blocks = Blocks(np.arange(7, dtype=np.uint16), 3)
    wrapped = Wrapped.of_blocks(blocks, 1.5, "held out")
    assert wrapped.blocks()[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert wrapped.left_over == 1


class Words(ByteTokenizer):
    """Passes over spaces."""

    def encode(self, text):
        return super().encode("".join(text.split()))


def test_wrapping_refuses():
    with pytest.raises(ValueError, match="wrap must be one of 'sedd', 'mdlm', 'separate'"):
        wrap(["a"], ByteTokenizer(), 4, "padded")
    with pytest.raises(ValueError, match="end-of-text at both ends"):
        wrap(["a"], ByteTokenizer(), 2, "mdlm")
    with pytest.raises(ValueError, match="empty: it holds no text"):
        wrap(["", ""], ByteTokenizer(), 4, name="empty")
    for how in ("sedd", "separate"):
        with pytest.raises(ValueError, match="blank: the tokenizer makes no token of its 2 char"):
            wrap(["  "], Words(eot=None), 4, how, name="blank")
