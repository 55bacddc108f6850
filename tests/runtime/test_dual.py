"""Which classes DPC serves by the mixture."""

from vlp_deploy.classes.dual import base_rows

BASE = ("Red_Fox", "7 0 7 - 3 2 0")  # the second as its tokens spell it


def test_base_classes_are_told_by_their_tokens() -> None:
    names = [("red fox",), ("707-320",), ("707-32",), ("grey fox", "red  fox"), ("fox",)]

    assert base_rows(names, BASE).tolist() == [True, True, False, True, False]


def test_without_base_classes_none_is_one() -> None:
    assert base_rows([("red fox",)], ()).tolist() == [False]
