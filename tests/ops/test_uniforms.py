"""The uniform numbers of the operations on a CPU: Philox, one key of torch's generator a call."""

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import sedd_fast as sf
from sedd_fast.backends import cpp, reference, registry
from sedd_fast.backends.cpp.module import kernels
from sedd_fast.backends.reference.uniforms import philox
from sedd_fast.ops import _uniforms
from sedd_fast.ops._uniforms import uniform, uniforms

CPU = torch.device("cpu")
needs_cpp = pytest.mark.skipif(cpp.unavailable() is not None, reason="no C++ kernels here")
ALL_ONES = 0xFFFFFFFF
#: (counter, key, block), each in words, from the authors' library Random123 (kat_vectors).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL_ONES,) * 4, (ALL_ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
#: Block numbers around the end of a word of the counter, and the last one.
FIRST = [0, 2**32 - 3, 2**32, 2**53 + 1, 2**64 - 40]


def block_in_numpy(counter: tuple[int, ...], key: int) -> tuple[int, ...]:
    words = [np.array([word], dtype=np.uint64) for word in counter]
    return tuple(int(word[0]) for word in philox(words, key))


def block_in_cpp(counter: tuple[int, ...], key: int) -> tuple[int, ...]:
    return kernels().philox(counter, key)


def block_in_python(counter: tuple[int, ...], key: int) -> tuple[int, ...]:
    """Philox-4x32-10 as the paper writes it: two Feistel networks (L, R) that swap their words."""
    (r0, l0, r1, l1), keys = counter, [key % 2**32, key // 2**32]
    for _ in range(10):
        high0, low0 = divmod(r0 * 0xD2511F53, 2**32)
        high1, low1 = divmod(r1 * 0xCD9E8D57, 2**32)
        r0, l0, r1, l1 = high1 ^ keys[0] ^ l0, low1, high0 ^ keys[1] ^ l1, low0
        keys = [(keys[0] + 0x9E3779B9) % 2**32, (keys[1] + 0xBB67AE85) % 2**32]
    return r0, l0, r1, l1


BLOCKS = [
    block_in_python,
    block_in_numpy,
    pytest.param(block_in_cpp, marks=needs_cpp),
]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_published_blocks(block: Callable[..., tuple[int, ...]], counter, key, expected):
    assert block(counter, key[0] + 2**32 * key[1]) == expected


@pytest.mark.parametrize("block", BLOCKS[1:])
def test_blocks_of_random_counters(block: Callable[..., tuple[int, ...]]):
    words = torch.randint(2**32, (50, 6), generator=torch.Generator().manual_seed(0)).tolist()
    for *counter, low, high in words:
        key = low + 2**32 * high
        assert block(tuple(counter), key) == block_in_python(tuple(counter), key)


FILLS = [reference.fill_uniforms, pytest.param(cpp.fill_uniforms, marks=needs_cpp)]


def filled(fill: Callable[..., None], count: int, *args: int) -> Tensor:
    u = torch.full((count,), torch.nan, dtype=torch.float64)
    fill(u, *args)
    return u


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("first", FIRST)
def test_two_numbers_of_a_block(fill, first):
    """Of 53 bits: the first ones of the words 0 and 1, and of the words 2 and 3."""
    key, expected = 2**63 + 12345, []
    for i in range(first, first + 11):
        x0, x1, x2, x3 = block_in_python((i % 2**32, i // 2**32, 0, 0), key)
        expected += [(x0 * 2**32 + x1) // 2**11 / 2**53, (x2 * 2**32 + x3) // 2**11 / 2**53]
    assert filled(fill, 22, key, first).tolist() == expected


@needs_cpp
@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 15, 16, 31, 32, 33, 63])
def test_cpp_equals_the_reference(count, first):
    """Whole vectors of blocks, and a rest; an odd count ends within a block."""
    for key in (0, 2**32, 2**63 - 1, 2**64 - 1):
        one, other = (filled(fill, count, key, first) for fill in (cpp.fill_uniforms, *FILLS[:1]))
        assert torch.equal(one, other)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needs_cpp
def test_the_number_of_threads_does_not_matter(threads):
    expected = filled(reference.fill_uniforms, 100_001, 5)
    for number in (1, 2, 3, 5):
        threads(number)
        assert torch.equal(filled(cpp.fill_uniforms, 100_001, 5), expected)


def test_moments_and_correlations():
    """Within five standard errors, of numbers from one key and from neighbouring keys."""
    draws = [filled(reference.fill_uniforms, 200_000, key).view(-1, 2) for key in (7, 8)]
    for u in draws:
        n = len(u)
        assert float(u.min()) >= 0
        assert float(u.max()) < 1
        assert (u.mean(0) - 1 / 2).abs().max() < 5 * (1 / 12 / n) ** 0.5
        assert (u.var(0) - 1 / 12).abs().max() < 5 * (1 / 180 / n) ** 0.5
        last_bits = (u * 2**53).long() % 2
        assert (last_bits.double().mean(0) - 1 / 2).abs().max() < 5 * (1 / 4 / n) ** 0.5
        cells = torch.bincount((u * 16).long() @ torch.tensor([16, 1]), minlength=256)
        chi_square = ((cells - n / 256).square() / (n / 256)).sum()
        assert abs(float(chi_square) - 255) < 5 * (2 * 255) ** 0.5
    (a, b), (c, d) = draws[0].T, draws[1].T
    pairs = [(a, b), (c, d), (a, c), (b, d), (a[1:], a[:-1]), (b[1:], b[:-1]), (a[1:], b[:-1])]
    for one, other in pairs:
        correlation = torch.corrcoef(torch.stack((one, other)))[0, 1]
        assert abs(float(correlation)) < 5 / len(a) ** 0.5


# --- draws of the operations -------------------------------------------------------------------


@pytest.fixture
def no_compiled_module(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "unavailable", lambda backend, device_type="cpu": "missing")
    _uniforms._fill.cache_clear()
    yield
    _uniforms._fill.cache_clear()


def noised(seed: int) -> Tensor:
    x_0 = torch.arange(2000).view(4, 500) % 11
    return sf.sample_transition(x_0, 0.7, sf.Uniform(11), torch.Generator().manual_seed(seed))


def test_one_seed_gives_the_same_tokens_on_every_backend():
    expected = noised(3)
    for backend in ("reference", *(["cpp"] if cpp.unavailable() is None else [])):
        with sf.use_backend(backend):
            assert torch.equal(noised(3), expected)
    assert not torch.equal(noised(4), expected)


def test_one_seed_gives_the_same_numbers_without_the_compiled_module(request):
    def draw() -> Tensor:
        return uniform((3, 5), CPU, torch.Generator().manual_seed(3))

    expected = draw()
    request.getfixturevalue("no_compiled_module")
    assert _uniforms._fill() is reference.fill_uniforms
    assert torch.equal(draw(), expected)


def test_a_draw_advances_the_generator():
    generator = torch.Generator().manual_seed(1)
    first, state = uniform((2, 3), CPU, generator), generator.get_state()
    second = uniform((2, 3), CPU, generator)
    assert not (first == second).any()
    generator.set_state(state)
    assert torch.equal(uniform((2, 3), CPU, generator), second)
    generator.manual_seed(1)
    assert torch.equal(uniform((2, 3), CPU, generator), first)


def test_the_default_generator_is_that_of_manual_seed():
    torch.manual_seed(5)
    first, second = (uniforms(torch.zeros(2, 3), None, None) for _ in range(2))
    assert not (first == second).any()
    torch.manual_seed(5)
    assert torch.equal(uniforms(torch.zeros(2, 3), None, None), first)
    assert torch.equal(uniform((2, 3, 2), CPU, torch.default_generator), second)


@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 1), (2, 3, 2)], ids=str)
def test_any_shape(shape):
    u = uniform(shape, CPU, torch.Generator().manual_seed(0))
    assert u.shape == shape
    assert u.dtype == torch.float64
    assert bool(((u > 0) & (u < 1)).all())


def in_a_thread(run: Callable[[], None]) -> None:
    """Run in a new thread, which has drawn nothing yet."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def test_a_first_draw_in_inference_mode():
    def run() -> None:
        with torch.inference_mode():
            uniform((2,), CPU)
        uniform((2,), CPU)

    in_a_thread(run)


def test_tensors_without_numbers():
    def run() -> None:
        for _ in range(2):
            with FakeTensorMode():
                x_t = sf.sample_transition(torch.zeros(2, 3, dtype=torch.int64), 1.0, sf.Uniform(5))
            assert x_t.shape == (2, 3)
            uniform((2,), CPU)

    in_a_thread(run)
    meta = sf.sample_transition(
        torch.zeros(2, 3, dtype=torch.int64, device="meta"), 1.0, sf.Uniform(5)
    )
    assert meta.device.type == "meta"


def test_threads_do_not_share_their_keys():
    """Else two threads that draw at the same time might get the same numbers."""
    keys = [_uniforms._thread.key]
    in_a_thread(lambda: keys.append(_uniforms._thread.key))
    assert keys[0] is not keys[1]
