"""Bulk classification as its users meet it: torture, kills, and answers that depend on no setting.

`python tests/road/test_bulk.py 20 [SEED]` kills 20 times each of four outputs.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.road.torture import BROKEN, SIZES, encoded, photo, write_torture
from vlp_deploy import Classifier, Prediction
from vlp_deploy.formats.fake_bundle import write_fake_bundle
from vlp_deploy.question import Question

NOBODY = 65_534
GOOD = 10_000
# Everything is imported before the rights to read the interpreter's own files are given up.
UNPRIVILEGED = f"""
import os, sys
from vlp_deploy.cli import run
run(["classify", sys.argv[1], "--bundle", sys.argv[3]])  # warms up every import
sys.stdout.flush()
if os.getuid() == 0:
    os.setgroups([])
    os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
    os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
sys.exit(run(["classify", sys.argv[2], "--bundle", *sys.argv[3:]]))
"""


def environment(cache: Path) -> dict[str, str]:
    paths = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "VLP_CACHE": str(cache)}


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)


def test_torture_folder_gives_one_line_each_twice_alike(open_folder: Path) -> None:
    odd, broken = write_torture(open_folder / "images", GOOD)
    write_torture(open_folder / "warm up", 1)
    write_fake_bundle(open_folder / "bundle", ("red", "green", "blue"))
    (open_folder / "locked").mkdir()
    (open_folder / "locked").rename(open_folder / "images" / "part 3" / "00000 locked folder")
    (open_folder / "images" / "part 3" / "00000 locked folder").chmod(0)
    for name in ("cache", "out"):
        (open_folder / name).mkdir()
        (open_folder / name).chmod(0o777)

    outputs = []
    for number in range(2):
        output = open_folder / "out" / f"{number}.jsonl"
        command = [sys.executable, "-c", UNPRIVILEGED, open_folder / "warm up"]
        command += [open_folder / "images", open_folder / "bundle", "--output", output]
        done = subprocess.run(
            command, env=environment(open_folder / "cache"), capture_output=True, timeout=600
        )
        assert done.returncode == 1, done.stderr.decode()
        outputs.append(output.read_bytes())

    assert outputs[0] == outputs[1]
    lines = [json.loads(line) for line in outputs[0].splitlines()]
    assert odd + broken >= 200
    assert len(lines) == GOOD + odd + broken + 1  # and a folder that may not be read
    failed = {line["path"]: line["error"] for line in lines if "error" in line}
    assert len(failed) == broken + 1
    assert len({line.get("path_b64", line["path"]) for line in lines}) == len(lines)
    reasons = [reason for path, reason in failed.items() if "locked" in path]
    assert len(reasons) == len(SIZES) + 1
    assert all("Permission denied" in reason for reason in reasons)
    names = {path.rpartition("/")[2][6:] for path in failed}
    assert names == {
        *BROKEN,
        "dangling.jpg",
        "itself.jpg",
        "pipe.jpg",
        "locked.jpg",
        "locked folder",
    }
    shutil.rmtree(open_folder / "images", onerror=_open_and_retry)


def _open_and_retry(function, path: str, _) -> None:
    os.chmod(path, 0o700)
    function(path)


def write_inputs(folder: Path) -> list[str]:
    """Inputs of every kind with 1,500 images, some of them twice; what to type for them."""
    content = [encoded(photo(60, 40 + seed), "JPEG") for seed in range(20)]
    for number in range(1_000):
        path = folder / "images" / f"{number % 3}" / f"{number:04} ü\n.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content[number % 20] if number % 50 else b"no picture")
    shutil.make_archive(str(folder / "shard"), "tar", folder / "images" / "1")
    single = folder / "images" / "2" / "0002 ü\n.jpg"
    return list(map(str, [folder / "images", single, folder / "shard.tar", single]))


def vlp(cache: Path, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "vlp_deploy", *map(str, arguments)],
        env=environment(cache),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(cache: Path, *arguments: object) -> float:
    """Run to the end and return the seconds it took."""
    began = time.monotonic()
    process = vlp(cache, *arguments)
    _, errors = process.communicate()
    assert process.returncode == 1, errors.decode()  # some inputs are no pictures
    return time.monotonic() - began


def everything(path: Path) -> dict[str, bytes]:
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def kill_classify(folder: Path, times: int, outputs: list[list[str]]) -> int:
    """Kill each kind of output `times` times, then let it end; returns how many kills hit."""
    write_fake_bundle(folder / "bundle", ("red", "green", "blue"))
    inputs = write_inputs(folder)
    hits = 0
    for number, names in enumerate(outputs):
        # the first with the embedded bundle, so that sums are rounded as an engine rounds them
        bundle = ["--bundle", folder / "bundle"] if number else ["--engine", "onnx"]
        command = ["classify", *inputs, *bundle]
        whole, killed = folder / f"whole-{number}", folder / f"killed-{number}"
        first, *rest = names
        options = ["--output", first, *(["--embeddings", *rest] if rest else [])]
        for target in (whole, killed):
            target.mkdir()
        os.chdir(whole)  # names of outputs stand in headers
        seconds = finish(folder / "cache", *command, *options)
        os.chdir(killed)
        for _ in range(times):
            process = vlp(folder / "cache", *command, *options)
            moment = random.uniform(0.2 * seconds, 0.9 * seconds)
            time.sleep(moment)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                hits += 1
            process.communicate()
            if process.returncode != -signal.SIGKILL:  # it was done: once more from the start
                seconds = moment  # other work may have slowed the first run
                shutil.rmtree(killed)
                killed.mkdir()
                os.chdir(killed)
        finish(folder / "cache", *command, *options)
        assert everything(killed) == everything(whole), names
    return hits


OUTPUTS = [["x.jsonl"], ["x.csv", "e.npy"], ["x.parquet"], ["x.jsonl", "e.parquet"]]


def test_kills_lose_nothing_and_repeat_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow", reason="two of the outputs need it")
    monkeypatch.chdir(tmp_path)  # and back, afterwards
    random.seed(1)

    assert kill_classify(tmp_path, 5, OUTPUTS) >= 10


def test_settings_of_speed_change_no_answer(tmp_path: Path) -> None:
    for number in range(150):
        photo(80 + number % 7, 60, seed=number).save(tmp_path / f"{number:03}.jpg")
    (tmp_path / "077.jpg").write_bytes(b"no picture")
    paths = sorted(tmp_path.iterdir())
    classifier = Classifier.load()
    expected = list(classifier.stream(paths, Question(batch_size=7), read_threads=2))

    for batch_size in (1, 7, 64):
        for threads in (1, 2, 8):
            answers = classifier.stream(
                paths, Question(batch_size=batch_size), read_threads=threads
            )
            for answer, other in zip(answers, expected, strict=True):
                if not isinstance(other, Prediction):
                    assert answer == other
                    continue
                assert isinstance(answer, Prediction)
                assert (answer.path, answer.label) == (other.path, other.label)
                # a sum over a batch of another size is ordered otherwise: 1e-6 in fp32
                assert abs(answer.probability - other.probability) <= 1e-5


def main() -> None:
    """Kill often."""
    times, seed = int(sys.argv[1]), int(sys.argv[2] if len(sys.argv) > 2 else time.time())
    random.seed(seed)
    print(f"seed {seed}")
    with tempfile.TemporaryDirectory() as folder:
        hits = kill_classify(Path(folder), times, OUTPUTS)
        print(f"{len(OUTPUTS)} kinds of output, {hits} kills hit, nothing lost or repeated")


if __name__ == "__main__":
    main()
