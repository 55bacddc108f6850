"""Artefacts appear whole or not at all, whoever is killed when."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vlp_deploy.files import (
    TEMPORARY_SUFFIX,
    sha256_of,
    staged_folder,
    sweep_temporaries,
    write_atomic,
)

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


def sweep_before_the_lock(monkeypatch: pytest.MonkeyPatch, target: Path, times: int) -> None:
    """The next `times` temporaries are swept between their creation and their locking."""
    left = times
    flock = fcntl.flock

    def late_flock(handle: int, operation: int) -> None:
        nonlocal left
        if operation == fcntl.LOCK_EX and left:
            left -= 1
            sweep_temporaries(target)
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late_flock)


def test_a_temporary_swept_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep_before_the_lock(monkeypatch, tmp_path / "file", times=2)
    write_atomic(tmp_path / "file", b"whole")
    sweep_before_the_lock(monkeypatch, tmp_path / "folder", times=2)
    with staged_folder(tmp_path / "folder") as staging:
        (staging / "inside").write_text("whole")

    assert (tmp_path / "file").read_bytes() == b"whole"
    assert (tmp_path / "folder" / "inside").read_text() == "whole"
    assert temporaries(tmp_path) == []


def test_many_threads_write_one_target(tmp_path: Path) -> None:
    contents = [bytes([index]) * 1000 for index in range(8)]
    target = tmp_path / "file"

    def write(content: bytes) -> None:
        for _ in range(25):
            write_atomic(target, content)
            assert target.read_bytes() in contents

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, contents))

    assert os.listdir(tmp_path) == ["file"]


def test_of_many_threads_one_makes_the_folder(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    barrier = threading.Barrier(8)

    def make(index: int) -> bool:
        barrier.wait()
        try:
            with staged_folder(target) as staging:
                (staging / str(index)).write_text("x")
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make, range(8)))

    assert made.count(True) == 1
    assert os.listdir(target) == [str(made.index(True))]
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("other", ["folder", "file"])
def test_target_that_appears_at_the_last_moment_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    target = tmp_path / "bundle"
    rename = os.rename

    def late_rename(source: Path, destination: Path) -> None:
        if other == "folder":
            target.mkdir()
        (target / "first" if other == "folder" else target).write_text("first")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", late_rename)

    with pytest.raises(FileExistsError), staged_folder(target) as staging:
        (staging / "late").write_text("late")
    assert (target / "first" if other == "folder" else target).read_text() == "first"


def test_sha256_of_known_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180-2, appendix B.1

    assert sha256_of(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")
