"""`vlp classify --ray`: the same as a local run, also when workers are killed on the way."""

import io
import os
import signal
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from vlp_deploy import Classifier, cli
from vlp_deploy.answers import Failure
from vlp_deploy.bulk import ray_run
from vlp_deploy.bulk.items import Input, Item
from vlp_deploy.errors import EngineError
from vlp_deploy.formats.fake_bundle import write_fake_bundle
from vlp_deploy.question import Question

COUNT = 60


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with some damaged ones between, a tar of more, and a bundle."""
    folder = tmp_path_factory.mktemp("ray")
    write_fake_bundle(folder / "bundle", ("red", "green", "blue"))
    (folder / "images").mkdir()
    with tarfile.open(folder / "shard.tar.gz", "w:gz") as archive:
        for number in range(COUNT):
            file = io.BytesIO()
            Image.new("RGB", (20, 30), (4 * number, 255 - 4 * number, 99)).save(file, "PNG")
            content = file.getvalue() if number % 13 else b"no picture"
            (folder / "images" / f"{number:02} ü.png").write_bytes(content)
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(content)
            if number < 10:
                archive.addfile(member, io.BytesIO(content))
    (folder / "images" / os.fsdecode(b"\xff.png")).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def task(inputs: Path) -> ray_run.Task:
    return ray_run.Task(
        bundle=str(inputs / "bundle"),
        digest=Classifier.load(inputs / "bundle").bundle.digest,
        engine="auto",
        threads=1,
        device="cpu",
        classes=None,
        templates=None,
        question=Question(top_k=3, batch_size=4),
    )


def test_ray_and_local_runs_agree(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="reads what was written")
    command = ["classify", str(inputs / "images"), str(inputs / "shard.tar.gz")]
    command += ["--bundle", str(inputs / "bundle"), "--batch-size", "8", "--reject-below", "0.99"]
    rows = {}
    for where, options in (("here", []), ("ray", ["--ray", "local"])):
        (tmp_path / where).mkdir()
        monkeypatch.chdir(tmp_path / where)
        assert cli.run([*command, *options, "--output", "out.parquet"]) == 1  # some are damaged
        assert "71 inputs, 6 failed" in capfd.readouterr().err
        rows[where] = parquet.read_table("out.parquet").to_pylist()

    assert len(rows["ray"]) == COUNT + 10 + 1
    rejected = [row["label"] is None for row in rows["ray"] if row["error"] is None]
    assert True in rejected
    assert False in rejected
    for here, there in zip(*(sorted(r, key=str) for r in rows.values()), strict=True):
        assert {**here, "probability": 0, "top": 0} == {**there, "probability": 0, "top": 0}
        if here["error"] is None:
            assert abs(here["probability"] - there["probability"]) <= 1e-5
    headers = [(tmp_path / where / "out.parquet.header.json").read_bytes() for where in rows]
    assert headers[0] == headers[1]


def test_workers_that_are_killed_lose_nothing(
    inputs: Path, task: ray_run.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = 20 * sorted(map(str, (inputs / "images").iterdir()))
    expected = Classifier.load(inputs / "bundle").classify(paths, 3, 4)
    hire, workers = ray_run.hire, []

    def hire_known_workers(package: ModuleType, task: ray_run.Task) -> list[Any]:
        workers.extend(hire(package, task))
        return workers

    monkeypatch.setattr(ray_run, "hire", hire_known_workers)
    with ray_run.connected("local") as ray:
        got = []
        for answer in ray_run.answers(ray, paths, task):
            got.append(answer)
            if len(got) in (100, 600):  # all workers have batches, at work and in their queues
                process = ray.get(workers[0].process.remote())
                os.kill(process, signal.SIGKILL)
        assert got == expected

        with pytest.raises(EngineError, match="a worker needs 1000 and 0"):
            hire(ray, replace(task, threads=1000))


class Fatal:
    """An image whose decoder takes the whole process with it."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def read(self) -> bytes:
        with open(self._log, "a") as log:
            log.write("x")
        os._exit(1)


def test_image_that_kills_its_worker_is_a_failure_and_nothing_else_is(
    inputs: Path, task: ray_run.Task, tmp_path: Path
) -> None:
    paths = sorted(map(str, (inputs / "images").iterdir()))
    fatal = Item("fatal.png", Fatal(tmp_path / "log"))
    items: list[Input] = [*paths[:9], fatal, *paths[9:]]
    failure = Failure(path="fatal.png", error=ray_run.DIED)
    classifier = Classifier.load(inputs / "bundle")
    expected = list(classifier.stream([*paths[:9], failure, *paths[9:]], task.question))

    with ray_run.connected("local") as ray:
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        got = list(ray_run.answers(ray, items, task))

    assert got == expected  # to the last bit: batches were as if the image could not be read
    assert (tmp_path / "log").read_text() == 2 * (ray_run.RETRIES + 1) * "x"  # in its batch, alone


def test_workers_that_cannot_even_load_are_an_error_and_no_image_is() -> None:
    ray = pytest.importorskip("ray")

    def dead(reference: Any) -> None:
        raise ray.exceptions.RayActorError

    package: Any = SimpleNamespace(get=dead, exceptions=ray.exceptions)
    worker: Any = SimpleNamespace(answers=SimpleNamespace(remote=lambda batch: None))
    with pytest.raises(EngineError, match="die before they have seen an image"):
        ray_run._without_fatal_images(package, worker, ["a.png"])


def test_cluster_that_is_not_there_is_explained() -> None:
    with pytest.raises(EngineError, match="no Ray cluster at") as caught, ray_run.connected("auto"):
        raise AssertionError("there is none")
    assert "--ray local" in str(caught.value)


def test_missing_extra_is_named(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    command = ["classify", str(inputs / "images"), "--bundle", str(inputs / "bundle")]

    assert cli.run([*command, "--ray", "local"]) == 3
    assert "pip install 'vlp-deploy[ray]'" in capfd.readouterr().err
