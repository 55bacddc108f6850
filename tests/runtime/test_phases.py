"""Bars of the phases of a long command, on a terminal and where there is none."""

import io
import sys

import pytest

from vlp_deploy.commands.phases import phases


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_phase_ends_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())

    with phases() as begin:
        advance = begin("loading", 3)
        advance("loading torch", 2)
        begin("cold start", None)
        *_, last = sys.stderr.getvalue().partition("loading")

    assert "2/3" in last
    assert "cold start" in last
    assert "torch" not in last.rpartition("loading")[2]  # what a phase did last is not its name


def test_without_a_terminal_nothing_is_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with phases() as begin:
        begin("loading", 3)("loading torch", 1)

    assert capsys.readouterr() == ("", "")
