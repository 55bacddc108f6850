"""Class lists as people save them, and as they should not."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlp_deploy.classes.class_list import read_class_list, refuse_duplicates
from vlp_deploy.errors import ClassListError


def read(tmp_path: Path, content: bytes) -> tuple[tuple[str, ...], ...]:
    path = tmp_path / "new.txt"
    path.write_bytes(content)
    return read_class_list(path)


@pytest.mark.parametrize(
    "content",
    [
        b"red panda\nlesser dog\n",
        b"\xef\xbb\xbfred panda\r\nlesser dog",
        b"\n  # comment\nred panda  \n\n\t\n #red panda\n lesser dog\n#",
        b"red panda\rlesser dog\r",
    ],
)
def test_one_class_a_line(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content) == (("red panda",), ("lesser dog",))


def test_tabs_separate_synonyms(tmp_path: Path) -> None:
    content = "red panda\tlesser panda\t\t firefox \t\ngrüne Katze 🐈\tC# (no comment)\n".encode()

    assert read(tmp_path, content) == (
        ("red panda", "lesser panda", "firefox"),
        ("grüne Katze 🐈", "C# (no comment)"),
    )


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "names no class"),
        (b"# only\n\n  \t\n", "names no class"),
        (b"dog\ncat\n\ndog\n", r"'dog' stands twice, at line 1 and line 4"),
        (b"dog\tDOG\n", "at line 1 and line 1"),
        (b"dog\tpuppy\ncat\tPuppy\n", "'Puppy' stands twice, at line 1 and line 2"),
        (b"red_panda\nred  panda\n", "stands twice"),
        (b"dog\ncaf\xe9\n", r"not UTF-8: byte 7 is 0xe9\. Save it as UTF-8"),
        ("dog\n".encode("utf-16"), "looks like UTF-16"),
        (b"\x7fELF\x02\x01\x00", r"line 1 holds the control character '\\x02'"),
        (b"dog\nca\x00t\n", r"line 2 holds the control character '\\x00'"),
    ],
)
def test_unusable_lists_are_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    with pytest.raises(ClassListError, match=complaint) as refusal:
        read(tmp_path, content)

    assert "new.txt" in str(refusal.value)


def test_missing_list_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ClassListError, match=r"new\.txt cannot be read: No such file"):
        read_class_list(tmp_path / "new.txt")
    with pytest.raises(ClassListError, match="cannot be read: Is a directory"):
        read_class_list(tmp_path)


def test_duplicates_name_where_they_stand() -> None:
    with pytest.raises(ClassListError, match=r"^'B' stands twice, at position 1 and position 2"):
        refuse_duplicates([["a"], ["b"], ["B"]], ["position 0", "position 1", "position 2"])


@settings(max_examples=100)
@given(content=st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
def test_any_bytes_give_classes_or_a_refusal(content: bytes, tmp_path_factory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(content)

    try:
        classes = read_class_list(path)
    except ClassListError:
        return
    assert all(name.strip() == name != "" for synonyms in classes for name in synonyms)
