"""From a file of class names, one a line, to a list of synonyms for every class.

UTF-8, with or without a byte order mark. Synonyms are separated by tabs, the first is the label.
Blank lines and lines that start with `#` are skipped. A name may stand only once.
"""

from collections.abc import Sequence
from pathlib import Path

from vlp_deploy.errors import ClassListError

ClassNames = tuple[tuple[str, ...], ...]  # class -> its synonyms, label first


def read_class_list(path: Path) -> ClassNames:
    """Read a file of class names. Raises ClassListError naming file, line or byte."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ClassListError(f"class list {path} cannot be read: {error.strerror}") from error
    classes, places = [], []
    for number, line in enumerate(_lines(content, path), 1):
        if line.lstrip().startswith("#"):
            continue
        synonyms = tuple(name for name in map(str.strip, line.split("\t")) if name)
        if not synonyms:
            continue
        if bad := next((c for c in line if ord(c) < 32 and c != "\t"), ""):
            raise ClassListError(
                f"class list {path}, line {number} holds the control character {bad!r}. "
                "Is it a text file?"
            )
        classes.append(synonyms)
        places.append(f"line {number}")
    if not classes:
        raise ClassListError(f"class list {path} names no class: expected one a line")
    refuse_duplicates(classes, places, source=f"class list {path}: ")
    return tuple(classes)


def refuse_duplicates(
    classes: Sequence[Sequence[str]], places: Sequence[str], *, source: str = ""
) -> None:
    """Raise ClassListError if a name stands twice, in whatever capitals and spacing."""
    seen: dict[str, str] = {}
    for synonyms, place in zip(classes, places, strict=True):
        for name in synonyms:
            key = name_key(name)
            if key in seen:
                raise ClassListError(
                    f"{source}{name!r} stands twice, at {seen[key]} and {place}. "
                    "Remove one: classes of the same name cannot be told apart"
                )
            seen[key] = place


def name_key(name: str) -> str:
    """What names that mean the same class have in common."""
    return " ".join(name.replace("_", " ").split()).lower()


def _lines(content: bytes, path: Path) -> list[str]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        hint = "It looks like UTF-16: save it as UTF-8" if utf16 else "Save it as UTF-8"
        raise ClassListError(
            f"class list {path} is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}. "
            f"{hint}"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
