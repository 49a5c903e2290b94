"""Text of files: UTF-8 with or without a byte order mark, and its lines.

The byte order mark that programs on Windows put at the start of a file is no character of its text.
"""

import shlex
import string
from pathlib import Path

from sedd_fast.files.hub import near

#: Byte order marks of other encodings. UTF-32's come first: UTF-16's is the start of one of them.
_MARKS = {
    b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
}  # fmt: skip
_SAMPLE = 65_536  # bytes in which control characters are counted
#: Bytes that text in any encoding of one byte a character hardly has.
_CONTROL = bytes({*range(0x20), 0x7F} - set(b"\t\n\v\f\r\x1a\x1b"))
#: Characters that text in UTF-16 has in most scripts, and hardly in the other byte order.
_STOPS = " \t\n\r\u3000\u3001\u3002\uff0c"


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
        close = "" if Path(path).exists() else near(path)
        reason = f"{error.strerror}{close}"
        raise ValueError(f"{name}: cannot read {path}: {reason}; check the path") from error


def decode(content: bytes, path: str, name: str = "data") -> str:
    """Text from UTF-8, without a byte order mark at the start.

    Raises:
        ValueError: it is not UTF-8. The message names the likely encoding and the command that
            converts it, or says that the file is not text.
    """
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            raise ValueError(_not_utf8(name, path, f"it is {encoding}", encoding.lower()))
    if order := _utf16(content[:_SAMPLE]):
        raise ValueError(_not_utf8(name, path, "it looks like UTF-16", order))
    if (zero := content.find(0)) >= 0:
        raise ValueError(_not_text(name, path, f"byte {zero} is 0"))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"byte {error.start}: {error.reason}"
        sample = content[:_SAMPLE]
        if (control := len(sample) - len(sample.translate(None, _CONTROL))) > len(sample) // 100:
            why = f"{reason}; {control} of its first {len(sample)} bytes are control characters"
            raise ValueError(_not_text(name, path, why)) from error
        looks, encoding = _likely(sample)
        raise ValueError(_not_utf8(name, path, f"{reason}; {looks}", encoding)) from error


def _utf16(content: bytes) -> str | None:
    """ "utf-16le" or "utf-16be" for text in it without a byte order mark.

    In the right byte order there are more spaces and stops, or else more letters of ASCII, and what
    is decoded can be printed. The other order makes U+4E00, a frequent character, of an N.
    """
    if 0 not in content:
        return None
    content = content[: len(content) & ~1]
    texts = {code: content.decode(code, "replace") for code in ("utf-16le", "utf-16be")}
    signs = {
        code: [sum(map(text.count, each)) for each in (_STOPS, string.ascii_letters)]
        for code, text in texts.items()
    }
    likely = max(signs, key=lambda code: signs[code])
    text = texts[likely]
    odd = sum(not (character.isprintable() or character in _STOPS) for character in text)
    odd += text.count("\ufffd")
    is_text = 50 * sum(signs[likely]) > len(text) > 20 * odd
    return likely if is_text and len({*map(tuple, signs.values())}) == 2 else None


def _likely(content: bytes) -> tuple[str, str]:
    """What a text that is not UTF-8 looks like, and the encoding that iconv is to read."""
    lenient = content.decode("utf-8", "replace")
    bad, beyond = lenient.count("\ufffd"), sum(character > "\x7f" for character in lenient)
    if beyond > 5 * bad:
        return "the rest is UTF-8: the file is damaged or cut off", "utf-8 -c"
    if sum(byte > 0x7F for byte in content) > len(content) // 3:
        return "most letters are not Latin: ENCODING may be cp1251, gb18030, ...", "ENCODING"
    try:
        content.decode("cp1252")
    except UnicodeDecodeError:
        return "it looks like Latin-1", "latin1"
    return "it looks like cp1252 or Latin-1", "cp1252"


def _not_text(name: str, path: str, reason: str) -> str:
    return f"{name}: {path} is not text ({reason}); give a text file in UTF-8"


def _not_utf8(name: str, path: str, reason: str, encoding: str) -> str:
    return (
        f"{name}: {path} is not UTF-8 ({reason}); convert it, for example with: "
        f"iconv -f {encoding} -t utf-8 {shlex.quote(path)} > utf8.txt"
    )


def split_lines(text: str) -> list[str]:
    """The lines of a text, without their line feeds.

    A line ends at a line feed and nowhere else: U+2028, U+2029 and U+0085, at which
    `str.splitlines` splits too, may stand within a line.
    """
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]
