"""Several processes train as one: the same prompts, one voice, one end."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlp_deploy.errors import TrainingError
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_train.parallel import ALONE, Processes
from vlp_train.training import Request, train

PATIENCE = 300  # seconds, of a crowded machine


@pytest.fixture
def arguments(toy_data: Path, tiny_model: Any) -> list[str]:
    """18 images in batches of 5, two of them a step: shares of 3 and 2 images."""
    return [
        *("train", str(toy_data), "--model", tiny_model.model),
        *("--pretrained", tiny_model.pretrained, "-O", "context_tokens=4", "--epochs", "3"),
        *("--warmup-epochs", "0", "--batch-size", "5", "--accumulate", "2"),
    ]


def environment(**extra: str) -> dict[str, str]:
    path = os.pathsep.join(sys.path)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **extra}


def start_two(arguments: list[str], folder: Path) -> list[subprocess.Popen[str]]:
    """What torchrun starts, without torchrun, so that every process can be watched."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "vlp_deploy", *arguments, "--output", str(folder)]
    return [
        subprocess.Popen(
            command,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
                TORCHELASTIC_RUN_ID="test",
            ),
        )
        for rank in range(2)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    try:
        said = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, out, err) for p, (out, err) in zip(processes, said, strict=True)]


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return dict(PromptCheckpoint.load(folder).tensors)


def test_torchrun_ends_in_the_prompts_of_one_process(
    arguments: list[str], request_for: Callable[..., Request], tmp_path: Path
) -> None:
    alone = train(
        request_for(
            "one", epochs=3, warmup_epochs=0, batch_size=5, accumulate=2, learning_rate=None
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "vlp_deploy", *arguments]

    done = subprocess.run(
        [*command, "--output", str(tmp_path / "two")],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=PATIENCE,
    )

    together = PromptCheckpoint.load(tmp_path / "two")
    one, other = alone.checkpoint.tensors["text.prompts"], together.tensors["text.prompts"]
    assert np.abs(one - other).max() < 1e-5  # sums in another order
    assert done.stdout.count("written: ") == 1  # one process prints
    metrics = together.header.provenance["metrics"]
    assert metrics["test"]["top1"] == alone.metrics["test"].top1
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert len(logs[0]) == len(logs[1]) == 3


def test_processes_killed_together_go_on_to_the_same_bits(
    arguments: list[str], tmp_path: Path
) -> None:
    longer = [*arguments, "--epochs", "30", "--resume"]
    for code, _, errors in finish(start_two(longer, tmp_path / "straight")):
        assert code == 0, errors
    log = tmp_path / "killed/log.jsonl"
    processes = start_two(longer, tmp_path / "killed")
    try:
        deadline = time.monotonic() + PATIENCE
        while not log.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        processes[0].send_signal(signal.SIGKILL)  # the other one ends by itself
        (killed, *_), (other, _, errors) = finish(processes)
    finally:
        for process in processes:
            process.kill()
    assert killed == -signal.SIGKILL
    assert (other, errors) == (1, "")
    assert not (tmp_path / "killed/prompt.safetensors").exists()

    results = finish(start_two(longer, tmp_path / "killed"))

    assert [code for code, *_ in results] == [0, 0], results
    straight, killed_tensors = tensors(tmp_path / "straight"), tensors(tmp_path / "killed")
    for name, value in straight.items():
        assert value.tobytes() == killed_tensors[name].tobytes(), name


def test_a_picture_that_one_process_cannot_read_stops_both(
    arguments: list[str], toy_data: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(toy_data, tmp_path / "data"))
    picture = data / "train/red fox/0.png"
    picture.write_bytes(picture.read_bytes()[:300])  # its header is whole
    arguments[arguments.index(str(toy_data))] = str(data)

    results = finish(start_two(arguments, tmp_path / "run"))

    assert [code for code, *_ in results] == [1, 1]
    assert [out for _, out, _ in results] == ["", ""]
    (said,) = [errors for *_, errors in results if errors]
    assert "0.png: the image is cut off" in said
    assert not (tmp_path / "run/prompt.safetensors").exists()


def test_what_is_wrong_with_a_request_is_said_once(arguments: list[str], tmp_path: Path) -> None:
    """Losses that couple images are no means over them."""
    alone = [word for word in arguments if word not in ("-O", "context_tokens=4")]

    results = finish(start_two([*alone, "--method", "dcp"], tmp_path / "run"))

    assert [code for code, *_ in results] == [1, 1]
    assert "the loss of dcp couples the images of a batch" in results[0][2]
    assert results[1][2] == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 6])
def test_shares_make_up_the_whole(size: int, count: int) -> None:
    shares = [Processes(rank=rank, size=size).share(np.arange(count)) for rank in range(size)]

    assert np.concatenate(shares).tolist() == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_agrees_with_itself() -> None:
    assert ALONE.first
    assert ALONE.gather("a") == ["a"]
    with pytest.raises(TrainingError, match="my own"), ALONE.agreeing():
        raise TrainingError("my own")
