"""Files of torch.save: every flipped bit is refused or harmless, and wrong ones get one line."""

import errno
import io
import pickle
import random
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from sedd_fast.files import pickles
from sedd_fast.files.pickles import check_weights, load_pickle, save_pickle
from sedd_fast.training.run_directory import load_file, save_file

CONTENT = {
    "step": 7,
    "model": {"w": torch.arange(45.0).view(9, 5), "b": torch.arange(40)},
    "rest": ["text", torch.tensor([0.5, -1.0], dtype=torch.bfloat16)],
}


def equal(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    return a == b


@pytest.fixture
def saved(tmp_path) -> Path:
    save_pickle(CONTENT, tmp_path / "state.pt")
    return tmp_path / "state.pt"


def refused(path: Path, **options) -> str:
    with pytest.raises(ValueError, match=path.name) as caught:
        load_pickle(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_round_trip(saved):
    assert equal(load_pickle(saved), CONTENT)
    assert equal(load_pickle(saved, mmap=True, legacy=True), CONTENT)
    assert [file.name for file in saved.parent.iterdir()] == ["state.pt"]


def attributes(content: bytes) -> int:
    """The place of the attributes of a tensor in the archive's directory."""
    return content.rfind(b"archive/data/0") - 8


@pytest.mark.parametrize("options", [{}, {"mmap": True, "legacy": True}], ids=["read", "mapped"])
def test_a_flipped_bit_is_refused_or_harmless(saved, options):
    content = saved.read_bytes()
    # Every 61st bit; and the one that marks a record as a directory, of which torch reads nothing.
    bits = [*range(0, 8 * len(content), 61), 8 * attributes(content) + 4]
    loaded = 0
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        saved.write_bytes(damaged)
        try:
            found = load_pickle(saved, **options)
        except ValueError:
            continue
        loaded += 1
        assert equal(found, CONTENT), bit
    assert loaded < len(bits) / 2  # padding and times, which nothing reads


@pytest.mark.parametrize("size", [0, 1, 2, 100, 1500, -1])
def test_a_cut_file_is_refused(saved, size):
    saved.write_bytes(saved.read_bytes()[:size])
    assert "is damaged" in refused(saved)
    assert "damaged" in refused(saved, legacy=True)


def test_a_reader_of_plain_data_verifies_it_alone(saved):
    content = bytearray(saved.read_bytes())
    content[content.index(torch.arange(45.0).numpy().tobytes()) + 3] ^= 1
    saved.write_bytes(content)
    assert load_pickle(saved, mmap=True, tensors=False)["step"] == 7
    assert "Bad CRC-32" in refused(saved)
    content[content.index(b"step")] ^= 1
    saved.write_bytes(content)
    assert "Bad CRC-32" in refused(saved, mmap=True, tensors=False)


def archive(pickled: bytes, compression=zipfile.ZIP_STORED, **records: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as writer:
        records = {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little"} | records
        for name, content in records.items():
            writer.writestr(f"archive/{name.replace('data_', 'data/')}", content)
    return file.getvalue()


DEEP = b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b"."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive(b"\x80\x02].", data_0=b""), "must hold a dict, got list"),
        (archive(b"\x80\x02K\x05."), "must hold a dict, got int"),
        (archive(b""), "is damaged"),
        (archive(b"garbage"), "damaged"),
        (archive(DEEP), "must hold a dict, got list"),
        (DEEP, "damaged"),
        (archive(pickle.dumps({"a": slice(1)}, 2)), "can run any code"),
        (archive(b"\x80\x02}.", zipfile.ZIP_DEFLATED, data_0=bytes(10**6)), "is compressed"),
    ],
    ids=["list", "int", "empty", "garbage", "deep", "deep-legacy", "object", "bomb"],
)
def test_wrong_pickles_are_refused(tmp_path, content, message):
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    assert message in refused(path, legacy=True)


def called(function: bytes, *arguments: bytes) -> bytes:
    """A pickle of {"model": function(*arguments)}; an argument is pickled already."""
    name = b"X\x05\0\0\0model"
    return b"\x80\x02}" + name + b"c" + function + b"\n(" + b"".join(arguments) + b"tRs."


LARGE = b"\x8a\x05" + (10**10).to_bytes(5, "little")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        called(b"builtins\nbytearray", LARGE),
        called(b"__builtin__\nbytearray", LARGE),
        called(b"builtins\nset", b"]"),
        called(b"torch\nTensor", LARGE),
        called(b"torch\nFloatTensor", LARGE),
        called(b"torch\nSize", b"]"),
        called(b"torch.storage\nUntypedStorage", LARGE),
        called(b"collections\nOrderedDict", b"]"),
        called(b"_codecs\nencode", b"X\x64\0\0\0" + b"a" * 100, b"X\x05\0\0\0utf-8"),
        called(b"numpy\ndtype", b"X\x0b\0\0\0V2000000000", b"\x89", b"\x88"),
        b"\x80\x02}" + b"}b" * 2000 + b".",
    ],
)
def test_pickles_that_take_any_memory_are_refused(legacy, content, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("it was loaded"))
    path = tmp_path / "state.pt"
    path.write_bytes(content if legacy else archive(content).replace(b"data.pkl", b"DATA.pkl"))
    assert "holds Python objects besides tensors" in refused(path, legacy=True)


@pytest.mark.parametrize("zipped", [False, True])
def test_all_that_weights_and_states_hold_is_read(zipped, tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).bfloat16()
    content = {
        "model": network.state_dict(),
        "weight": torch.nn.Parameter(torch.randn(2, 2)),
        "lr": [np.float64(0.1), np.float64(0.5)],
        "other": [{"a": (1, 2.5, None, "text", 10**30)}, torch.float16, torch.device("cpu")],
        "random": torch.get_rng_state(),
    }
    if zipped:  # the older format has no such numbers
        content["small"] = torch.ones(2).to(torch.float8_e4m3fn)
    path = tmp_path / "state.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = load_pickle(path, legacy=True)
    assert found.keys() == content.keys()
    assert found["lr"] == content["lr"]
    assert equal(dict(found["model"]), dict(content["model"]))
    assert found["model"]._metadata == content["model"]._metadata


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_random_changes_of_the_pickle_raise_nothing_else(saved):
    """The sums are right, as those of a file that somebody made on purpose."""
    with zipfile.ZipFile(saved) as reader:
        records = {name: reader.read(name) for name in reader.namelist()}
    random.seed(0)
    for _ in range(100):
        changed = bytearray(records["archive/data.pkl"])
        for _ in range(random.randint(1, 3)):
            changed[random.randrange(len(changed))] = random.randrange(256)
        with zipfile.ZipFile(saved, "w") as writer:
            for name, content in records.items():
                writer.writestr(name, changed if name == "archive/data.pkl" else content)
        with suppress(ValueError):
            load_pickle(saved)


def test_a_storage_larger_than_its_record_is_refused(saved):
    with zipfile.ZipFile(saved) as reader:
        records = {name: reader.read(name) for name in reader.namelist()}
    with zipfile.ZipFile(saved, "w") as writer:
        for name, content in records.items():
            writer.writestr(name, content[:4] if "/data/" in name else content)
    refused(saved)


W = torch.randn(4, 4)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"w": 1}, "must hold tensors by name, got int for 'w'"),
        ({1: W}, "must hold tensors by name"),
        ({"w": W.int()}, r"w must be a dense tensor of floating point, got .* torch\.int32"),
        ({"w": W.to(torch.complex64)}, "must be a dense tensor of floating point"),
        ({"w": W > 0}, "must be a dense tensor of floating point"),
        ({"w": W.to_sparse()}, "must be a dense tensor of floating point"),
        ({"w": W.to("meta")}, "on meta"),
        ({"w": torch.zeros(1).expand(10**12)}, "it was saved expanded"),
        ({f"w{i}": W for i in range(1000)}, "more than 16 times the file"),
    ],
)
def test_weights_that_are_no_plain_tensors_are_refused(tmp_path, weights, message):
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(200))
    with pytest.raises(ValueError, match=message):
        check_weights(weights.items(), path)


def test_tied_and_strided_weights_are_plain(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(200))
    check_weights({"a": W, "b": W, "t": W.T, "row": W[1], "p": torch.nn.Parameter(W)}.items(), path)


@pytest.mark.parametrize("elements", [20, 100_000])
def test_a_full_disk_is_an_os_error(saved, monkeypatch, elements):
    """torch's RuntimeError names neither the disk nor the file."""
    before = saved.read_bytes()

    class Full(io.FileIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pickles, "open", lambda path, mode: Full(path, "w"), raising=False)
    with pytest.raises(OSError, match="No space left") as caught:
        save_pickle({"w": torch.zeros(elements)}, saved)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(saved))
    assert [file.name for file in saved.parent.iterdir()] == ["state.pt"]
    assert saved.read_bytes() == before


def test_other_errors_of_a_write_are_their_own(saved):
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_pickle({"f": lambda: None}, saved)
    assert equal(load_pickle(saved), CONTENT)
    assert [file.name for file in saved.parent.iterdir()] == ["state.pt"]


def test_a_flipped_bit_in_the_checkpoint_of_a_run_is_refused(tmp_path):
    path = tmp_path / "step-00000003" / "state.pt"
    path.parent.mkdir()
    save_file(CONTENT, path)
    assert equal(load_file(path), CONTENT)
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(45.0).numpy().tobytes()) + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"cannot read .*CRC-32.*; remove .*step-00000003 to resume"
    ):
        load_file(path)
    assert load_file(path, mmap=True)["step"] == 7  # for `is_finished`, which reads no tensor
