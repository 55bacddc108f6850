"""`kill -9` at random moments: no half-written artefact is accepted, and resumed training ends the
same.

`python tests/road/test_kill.py 20 [SEED]` does it 20 times to each verb, and to the demo.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vlp_deploy.embedded import emoji_path
from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.formats.checkpoint import RUN_FILE, PromptCheckpoint

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

BASE = emoji_path() / "split_zhou_base.json"
TRAIN = ["train", str(BASE), "--method", "coop", "--shots", "1", "--epochs", "3", "--no-augment"]
TRAIN += ["-O", "context_tokens=4"]


def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vlp_deploy", *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # so that a kill reaches its children too
    )


def finish(*arguments: str | Path) -> float:
    """Run to the end and return the seconds it took."""
    began = time.monotonic()
    process = start(*arguments)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    return time.monotonic() - began


def kill_within(seconds: float, *arguments: str | Path) -> bool:
    """Start a verb and kill it at a random moment of the next `seconds`; False if it was done."""
    process = start(*arguments)
    time.sleep(random.uniform(0, seconds))
    killed = process.poll() is None
    if killed:
        os.killpg(process.pid, 9)
    process.communicate()
    return killed


def whole_or_absent(path: Path) -> None:
    """What can be opened is complete; anything else is refused or not there."""
    if path.name == "bundle":
        assert not path.exists() or not [c for _, c in Bundle(path).files.verify() if c]
        return
    if not (path / RUN_FILE).exists():
        with pytest.raises(CheckpointError, match=r"no prompt checkpoint|unfinished training run"):
            PromptCheckpoint.load(path)
    else:
        assert PromptCheckpoint.load(path).header.provenance["metrics"]


def kill_training(folder: Path, times: int) -> int:
    """Returns how many kills hit."""
    whole = folder / "whole"
    seconds = finish(*TRAIN, "--output", whole)
    expected = PromptCheckpoint.load(whole).tensors["text.prompts"]
    hits = 0
    for number in range(times):
        run = folder / f"run-{number}"
        hits += kill_within(seconds, *TRAIN, "--output", run)
        whole_or_absent(run)
        hits += kill_within(seconds, *TRAIN, "--output", run, "--resume")
        whole_or_absent(run)
        finish(*TRAIN, "--output", run, "--resume")
        found = PromptCheckpoint.load(run).tensors["text.prompts"]
        assert found.tobytes() == expected.tobytes(), f"run {number} ended in other weights"
        shutil.rmtree(run)
    return hits


def kill_export(folder: Path, times: int) -> int:
    """Returns how many kills hit."""
    run, bundle = folder / "run", folder / "bundle"
    finish(*TRAIN, "--output", run)
    seconds = finish("export", run, "--output", bundle)
    hits = 0
    for number in range(times):
        if number % 2:  # half of the kills hit an export that replaces a bundle
            hits += kill_within(seconds, "export", run, "--output", bundle, "--force")
            assert bundle.exists()
        else:
            shutil.rmtree(bundle)
            hits += kill_within(seconds, "export", run, "--output", bundle)
        whole_or_absent(bundle)
        finish("export", run, "--output", bundle, "--force")
        assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    return hits


def kill_demo(folder: Path, times: int) -> int:
    """Returns how many kills hit."""
    options = ["--seeds", "1", "--epochs", "2", "--output", folder / "demo"]
    seconds = finish("demo", *options)
    hits = 0
    for _ in range(times):
        hits += kill_within(seconds, "demo", *options)
        for run in ("zeroshot", "coop-1"):
            whole_or_absent(folder / "demo" / run)
        whole_or_absent(folder / "demo" / "bundle")
    finish("demo", *options)
    return hits


@pytest.mark.parametrize("torment", [kill_training, kill_export])
def test_kills_leave_nothing_half_written(
    torment: Callable[[Path, int], int], tmp_path: Path
) -> None:
    random.seed(1)

    assert torment(tmp_path, 2) >= 1


def main() -> None:
    """Do it often, the demo too."""
    times, seed = int(sys.argv[1]), int(sys.argv[2] if len(sys.argv) > 2 else time.time())
    random.seed(seed)
    print(f"seed {seed}")
    for torment in (kill_training, kill_export, kill_demo):
        with tempfile.TemporaryDirectory() as folder:
            hits = torment(Path(folder), times)
            print(f"{torment.__name__}: {times} rounds, {hits} kills hit, nothing half-written")


if __name__ == "__main__":
    main()
