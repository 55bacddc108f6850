"""`--watch`: what arrives is classified once, when it is whole, until somebody interrupts."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from vlp_deploy import cli
from vlp_deploy.bulk import watching
from vlp_deploy.bulk.watching import arrivals


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (20, 30), "red").save(tmp_path / "in" / "first.png")
    return tmp_path / "in"


def test_files_are_taken_once_when_they_rest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "POLL_S", 0)
    looks = arrivals([folder], {str(folder / "known.png")})
    (folder / "known.png").write_bytes(b"")
    assert next(looks) == []

    (folder / "growing.png").write_bytes(b"1")
    assert next(looks) == [str(folder / "first.png")]
    (folder / "growing.png").write_bytes(b"12")
    assert next(looks) == []
    assert next(looks) == [str(folder / "growing.png")]
    (folder / "first.png").write_bytes(b"changed afterwards")
    (folder / "gone.png").write_bytes(b"1")
    assert next(looks) == []
    (folder / "gone.png").unlink()
    assert list(islice(looks, 3)) == [[], [], []]


def wait_for_lines(path: Path, count: int) -> list[dict]:
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return [json.loads(line) for line in path.read_bytes().splitlines()]
        time.sleep(0.05)
    raise TimeoutError(f"{path} has not {count} lines")


def test_watching_ends_cleanly_and_goes_on(folder: Path, fake_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "vlp_deploy", "classify", folder, "--bundle", fake_bundle]
    command += ["--watch", "--output", output, "--copy-to", tmp_path / "sorted" / "{label}"]
    command += ["--reject-below", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "error"}

    for number, end in ((1, signal.SIGINT), (2, signal.SIGKILL), (3, signal.SIGINT)):
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # a shell's background jobs hand on a Ctrl-C that is ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        if number > 1:
            (folder / f"{number}.png").write_bytes((folder / "first.png").read_bytes())
        wait_for_lines(output, number)
        process.send_signal(end)
        _, errors = process.communicate(timeout=60)
        if end == signal.SIGINT:
            assert process.returncode == 0, errors.decode()
            assert b"Traceback" not in errors

    names = [Path(line["path"]).name for line in wait_for_lines(output, 3)]
    assert names == ["first.png", "2.png", "3.png"]
    assert sum(1 for _ in (tmp_path / "sorted").glob("none of these/*.png")) == 3
    header = json.loads((tmp_path / "out.jsonl.header.json").read_bytes())
    assert header["finished"] == {"inputs": 3, "failed": 0}


@pytest.mark.parametrize(
    "wrong", [["first.png"], ["-"], [".", "--ray", "local"], [".", "--embeddings", "e.npy"]]
)
def test_what_cannot_be_watched_is_refused(
    folder: Path, fake_bundle: Path, wrong: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)

    assert cli.run(["classify", *wrong, "--watch", "--bundle", str(fake_bundle)]) == 2
