"""Artefacts appear whole or not at all, whoever is killed when."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vlp_deploy.files import TEMPORARY_SUFFIX, sha256_of, staged_folder, write_atomic

ENDLESS_WRITER = """
import sys, time
from pathlib import Path
from vlp_deploy.files import staged_folder
with staged_folder(Path(sys.argv[1])) as staging:
    (staging / "half.txt").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def temporaries(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(TEMPORARY_SUFFIX)]


def start_writer(target: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", ENDLESS_WRITER, str(target)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    return writer


def kill(writer: subprocess.Popen[str]) -> None:
    writer.send_signal(signal.SIGKILL)
    writer.communicate()


def test_write_atomic_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.bin"

    write_atomic(path, b"long old content")
    write_atomic(path, b"new")

    assert path.read_bytes() == b"new"
    assert temporaries(path.parent) == []


def test_write_atomic_keeps_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    write_atomic(path, b"old")

    with pytest.raises(TypeError):
        write_atomic(path, "text is not bytes")  # type: ignore[arg-type]

    assert path.read_bytes() == b"old"
    assert temporaries(tmp_path) == []


def test_staged_folder_vanishes_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), staged_folder(tmp_path / "bundle") as staging:
        (staging / "file").write_text("x")
        raise RuntimeError("stop")

    assert os.listdir(tmp_path) == []


def test_staged_folder_refuses_an_existing_target(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()

    with pytest.raises(FileExistsError), staged_folder(tmp_path / "bundle"):
        pytest.fail("the work must not begin")


def test_staged_folder_refuses_a_target_that_appeared_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError), staged_folder(tmp_path / "bundle") as staging:
        (staging / "file").write_text("late")
        (tmp_path / "bundle").mkdir()
        (tmp_path / "bundle" / "file").write_text("first")

    assert (tmp_path / "bundle" / "file").read_text() == "first"


def test_staged_folder_exchanges_the_old_target(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_text("old")

    with staged_folder(target, replace=True) as staging:
        (staging / "new").write_text("new")

    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_killed_writer_leaves_no_target_and_the_next_one_sweeps(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    kill(start_writer(target))
    assert not target.exists()
    assert len(temporaries(tmp_path)) == 1

    with staged_folder(target) as staging:
        (staging / "whole").write_text("whole")

    assert os.listdir(tmp_path) == ["bundle"]


def test_a_living_writer_is_not_swept(tmp_path: Path) -> None:
    writer = start_writer(tmp_path / "bundle")
    try:
        with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "bundle"):
            raise ZeroDivisionError
        assert len(temporaries(tmp_path)) == 1
    finally:
        kill(writer)


def test_sweeping_keeps_temporaries_of_other_targets(tmp_path: Path) -> None:
    other = tmp_path / f".other.123{TEMPORARY_SUFFIX}"
    other.write_text("somebody else's")

    write_atomic(tmp_path / "file", b"x")

    assert other.exists()


def test_a_locked_temporary_file_is_not_swept(tmp_path: Path) -> None:
    busy = tmp_path / f".file.123{TEMPORARY_SUFFIX}"
    with open(busy, "xb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        write_atomic(tmp_path / "file", b"x")
        assert busy.exists()

    write_atomic(tmp_path / "file", b"y")
    assert not busy.exists()


def test_sha256_of_known_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180-2, appendix B.1

    assert sha256_of(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")
