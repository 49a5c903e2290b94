"""Text of files: UTF-8 with or without a byte order mark, and its lines.

The byte order mark that programs on Windows put at the start of a file is no character of its text.
"""

from pathlib import Path

#: Byte order marks of other encodings. UTF-32's come first: UTF-16's is the start of one of them.
_MARKS = {
    b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
}  # fmt: skip
_FIRST = 64  # bytes in which UTF-16 without a byte order mark is looked for


def read_text(path: str | Path, name: str = "data") -> str:
    """A file of text, each of its line breaks as one line feed, as Python's open reads it.

    Args:
        path: the file.
        name: what errors call it.

    Raises:
        ValueError: the file cannot be read, or is not UTF-8.
    """
    text = decode(read_bytes(path, name), str(path), name)
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def read_bytes(path: str | Path, name: str = "data") -> bytes:
    """The content of a file; ValueError, calling it `name`, where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{name}: cannot read {path}: {error.strerror}; check the path") from error


def decode(content: bytes, path: str, name: str = "data") -> str:
    """Text from UTF-8, without a byte order mark at the start.

    Raises:
        ValueError: it is not UTF-8; the message names the encoding, as far as it is known.
    """
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            raise ValueError(_not_utf8(name, path, f"it is {encoding}", encoding.lower()))
    even, odd = any(content[:_FIRST:2]), any(content[1:_FIRST:2])
    if len(content) > 1 and even != odd:  # every second byte is 0
        encoding = "utf-16le" if even else "utf-16be"
        raise ValueError(_not_utf8(name, path, "it looks like UTF-16", encoding))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"byte {error.start}: {error.reason}"
        raise ValueError(_not_utf8(name, path, reason, "latin1")) from error


def _not_utf8(name: str, path: str, reason: str, encoding: str) -> str:
    return (
        f"{name}: {path} is not UTF-8 ({reason}); convert it, for example with: "
        f"iconv -f {encoding} -t utf-8 {path} > utf8.txt"
    )


def split_lines(text: str) -> list[str]:
    """The lines of a text, without their line feeds.

    A line ends at a line feed and nowhere else: U+2028, U+2029 and U+0085, at which
    `str.splitlines` splits too, may stand within a line.
    """
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]
