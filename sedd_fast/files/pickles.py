"""torch.save and torch.load for files from anyone: verified, and read as plain data and tensors.

torch.save writes a zip archive whose records carry a CRC-32, which torch.load does not read. Here
every record is compared with it first. Unpickling accepts tensors and plain containers only
(`weights_only`), so that a file from a stranger cannot run code. The functions that a pickle calls
are compared with a short list before: among those that torch allows are some that take any amount
of memory, such as bytearray(10**12).
"""

import contextlib
import io
import os
import pickle
import pickletools
import re
import reprlib
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from sedd_fast.files.writing import replace_file

_PIECE = 1 << 20  # bytes read at a time
_DIRECTORY = 0x10  # in a record's attributes; torch then reads nothing, and zipfile its content
#: Tensors that share memory may together be so many times as large as their file. Tied weights
#: share it; so could a small file that asks for more memory than there is.
_SHARED = 16

#: What a pickle may name: all that torch.save writes for tensors, plain data and numpy's numbers.
_NAMED = re.compile(
    r"torch(\.cuda)? \w+Storage|torch\.storage UntypedStorage|torch device"
    r"|torch (bool|bfloat16|u?int\d+|float\d+\w*|complex\d+)"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter)"
    r"|collections OrderedDict|_codecs encode|numpy dtype|numpy\._?core\.multiarray scalar"
)
#: What must come next where a pickle names these, as torch.save writes it: a call without
#: arguments, a short text, or the type of a number.
_NEXT = {
    "collections OrderedDict": re.compile("EMPTY_TUPLE"),
    "_codecs encode": re.compile("text:.{0,64}", re.DOTALL),
    "numpy dtype": re.compile("text:[bfiu][1248]"),
    "numpy.core.multiarray scalar": re.compile("numpy dtype|REDUCE"),
    "numpy._core.multiarray scalar": re.compile("numpy dtype|REDUCE"),
    "torch.storage UntypedStorage": re.compile("text:.*", re.DOTALL),
}
_REFUSED = ("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4")
_MOST_BUILDS = 1000  # each may copy a dictionary


def save_pickle(content: Any, path: Path) -> None:
    """`torch.save`, flushed to the disk; the file appears whole.

    Raises:
        OSError: it cannot be written; a file of that name is unchanged.
    """

    def write_to(unfinished: Path) -> None:
        # Into an open file: torch's own writer hides why a write failed.
        with open(unfinished, "wb") as file:
            torch.save(content, file)

    replace_file(path, write_to)


def load_pickle(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    mmap: bool = False,
    tensors: bool = True,
    legacy: bool = False,
) -> dict[Any, Any]:
    """The dict that `torch.save` wrote.

    Args:
        path: the file.
        device: where its tensors go.
        mmap: leave tensors on the disk until they are used.
        tensors: verify them; False, for a caller that reads none, verifies the rest only.
        legacy: also accept torch's format of before 2020, which is no archive and cannot be
            verified.

    Raises:
        ValueError: the file is damaged, is no dict, or holds objects that are not plain data.
        OSError: it cannot be opened.
    """
    with open(path, "rb") as file:
        old = legacy and not _is_archive(file)
        if not old:
            _verify(file, path, tensors)
        _check_names(file, path, old)
    options: Any = {"map_location": device, "weights_only": True, "mmap": mmap and not old}
    try:
        with allow_numpy_scalars():
            content = torch.load(path, **options)
    except pickle.UnpicklingError as error:
        raise _refusal(path) from error
    except Exception as error:  # a wrong pickle makes torch raise almost any error
        raise ValueError(f"{path} is damaged: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a dict, got {type(content).__name__}")
    return content


def _is_archive(file: BinaryIO) -> bool:
    """Whether a file begins or ends as a zip archive does: damage leaves one of the two."""
    begins = file.read(2) == b"PK"
    try:
        return begins or zipfile.is_zipfile(file)
    except (zipfile.BadZipFile, OSError):
        return True


def _verify(file: BinaryIO, path: Path, tensors: bool) -> None:
    """ValueError unless the records are those that were written; `tensors`: theirs as well."""
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            if any(r.compress_type != zipfile.ZIP_STORED for r in records):
                raise ValueError("a record is compressed, and torch compresses none")
            if sum(r.file_size for r in records) > os.path.getsize(path):
                raise ValueError("its records are larger than the file")
            if any(r.external_attr & _DIRECTORY for r in records):
                raise ValueError("a record is marked as a directory")
            if len({r.filename for r in records}) < len(records):
                raise ValueError("it holds two records of one name")
            for record in records:
                if tensors or "/data/" not in record.filename:
                    with archive.open(record) as content:
                        while content.read(_PIECE):  # the last piece compares the CRC-32
                            pass
    except Exception as error:  # damaged headers make zipfile raise many kinds
        raise ValueError(f"{path} is damaged: {_first_line(error)}") from error


def _check_names(file: BinaryIO, path: Path, old: bool) -> None:
    """ValueError where the pickles in a file name more than torch.save of plain data does."""
    file.seek(0)
    try:
        if old:
            for _ in range(5):  # magic number, version, system, content, names of the storages
                _check_pickle(file)
            return
        with zipfile.ZipFile(file) as archive:
            for record in archive.infolist():
                if record.filename.lower().endswith("data.pkl"):  # torch ignores the case
                    _check_pickle(io.BytesIO(archive.read(record)))
    except pickle.UnpicklingError as error:
        raise _refusal(path, str(error)) from error
    except Exception as error:  # what is no pickle makes pickletools raise many kinds
        raise ValueError(f"{path} is damaged: {_first_line(error)}") from error


def _check_pickle(stream: BinaryIO) -> None:
    memo: dict[Any, str] = {}
    last, builds = "", 0
    for code, argument, _ in pickletools.genops(stream):
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = last
            continue
        token = code.name
        if token in ("GET", "BINGET", "LONG_BINGET"):
            token = memo.get(argument, token)
        elif "UNICODE" in token:
            token = f"text:{argument}"
        elif token == "GLOBAL":
            token = str(argument)
            if _NAMED.fullmatch(token) is None:
                raise pickle.UnpicklingError(token.replace(" ", "."))
        builds += token == "BUILD"
        if token in _REFUSED or builds > _MOST_BUILDS:
            raise pickle.UnpicklingError(f"the operation {token}")
        if last in _NEXT and _NEXT[last].fullmatch(token) is None:
            raise pickle.UnpicklingError(last.replace(" ", "."))
        last = token


def _refusal(path: Path, name: str = "") -> ValueError:
    found = f" ({reprlib.repr(name)})" if name else ""
    return ValueError(
        f"{path} was refused: it is damaged, or holds Python objects besides tensors{found}, and "
        "unpickling those can run any code; ask its author for a safetensors file"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def allow_numpy_scalars() -> contextlib.AbstractContextManager[Any]:
    """Let `weights_only` loading accept numpy numbers.

    The original's warm-up leaves the learning rate as one in the optimiser's state, so that every
    checkpoint it wrote holds it. They are plain numbers: reading them runs no code.
    """
    scalar = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [np.dtype, type(np.dtype(np.float64))]
    allowed += [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return torch.serialization.safe_globals(allowed)


def check_weights(weights: Iterable[tuple[Any, Any]], path: Path) -> None:
    """ValueError unless all are named dense tensors of floating point with memory of their own.

    An expanded tensor takes 4 bytes in a file and any amount where it is copied.

    Args:
        weights: pairs of name and tensor.
        path: the file that they are from.
    """
    total = 0
    for name, value in weights:
        if type(value) not in (Tensor, nn.Parameter) or not isinstance(name, str):
            kind = type(value).__name__
            raise ValueError(
                f"{path} must hold tensors by name, got {kind} for {reprlib.repr(name)}"
            )
        plain = value.layout is torch.strided and not (value.is_quantized or value.is_nested)
        if not plain or value.device.type != "cpu" or not value.is_floating_point():
            raise ValueError(
                f"{path}: {name} must be a dense tensor of floating point, got "
                f"{value.layout} {value.dtype} on {value.device}"
            )
        size = value.numel() * value.element_size()
        if size > value.untyped_storage().nbytes():
            raise ValueError(
                f"{path}: {name} of shape {tuple(value.shape)} has memory for "
                f"{value.untyped_storage().nbytes()} of {size} bytes: it was saved expanded"
            )
        total += size
    if total > _SHARED * os.path.getsize(path):
        raise ValueError(
            f"{path}: its tensors would take {total} bytes, more than {_SHARED} times the file"
        )
