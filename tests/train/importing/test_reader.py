"""Files of PyTorch are read without running what they ask for."""

import builtins
import functools
import importlib
import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.train.importing.official import (
    checkpoint,
    nothing_may_run,
    save,
    scheduler_of_a_lost_class,
    values,
)
from vlp_deploy.errors import CheckpointError, UnsafeFileError
from vlp_train.importing.reader import OfficialFile, read_official


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def payloads(trace: Path) -> dict[str, Call]:
    """Calls by the name they must be reported under; the first five would leave `trace`."""
    code = f"open({str(trace)!r}, 'w').close()"
    return {
        "os.system": Call(os.system, f"touch {trace}"),
        "builtins.eval": Call(eval, code),
        "builtins.exec": Call(exec, code),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", str(trace)]),
        "io.open": Call(open, str(trace), "w"),
        "builtins.getattr": Call(getattr, os, "system"),
        "importlib.import_module": Call(importlib.import_module, "antigravity"),
        "functools.partial": Call(functools.partial, print),
        "torch.hub.load": Call(torch.hub.load, "someone/some-repository", "a_model"),
        "torch.serialization.load": Call(torch.load, str(trace)),
        "numpy.load": Call(np.load, str(trace)),
        "webbrowser.open": Call(importlib.import_module("webbrowser").open, "http://localhost"),
    }


NAMES = sorted(payloads(Path("trace")))


@pytest.mark.parametrize("place", ["state_dict", "scheduler", "optimizer", "val_result"])
def test_a_call_is_reported_and_not_made(place: str, tmp_path: Path) -> None:
    content = checkpoint({"ctx": values(4, 24)})
    with nothing_may_run(tmp_path) as trace:
        content[place] = {"ctx": payloads(trace)["os.system"]}
        path = save(content, tmp_path / "model.pth.tar-5")

        with pytest.raises(UnsafeFileError, match=r"to call posix\.system \(os\.system\)\('touch "):
            read_official(path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stream", [False, True])
def test_every_kind_of_call_is_reported(name: str, stream: bool, tmp_path: Path) -> None:
    with nothing_may_run(tmp_path) as trace:
        content = {"state_dict": {"ctx": values(4, 24)}, "scheduler": payloads(trace)[name]}
        if name == "builtins.getattr":  # modules cannot be pickled: ask for an attribute of a name
            content["scheduler"] = Call(getattr, "text", "upper")
        path = save(content, tmp_path / "model.pth.tar-5", stream=stream)

        with pytest.raises(UnsafeFileError, match=r"asks to call|names") as error:
            read_official(path)
    assert name in str(error.value)
    assert "Nothing was run" in str(error.value)


def test_the_payload_would_have_run(tmp_path: Path) -> None:
    """The control: an ordinary reader does leave the trace."""
    trace = tmp_path / "trace"
    path = save({"state_dict": payloads(trace)["builtins.exec"]}, tmp_path / "model.pth.tar-5")

    torch.load(path, weights_only=False)

    assert trace.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n.",  # only named
        b"(S'touch trace'\nios\nsystem\n.",  # the oldest way to call
        b"(cos\nsystem\nS'touch trace'\no.",
        b"c__builtin__\neval\n(S'1'\ntR.",  # as Python 2 spelled it
        b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93\x8c\x01a\x85R.",
        b"\x80\x02csubprocess\nPopen\n(S'touch'\nt\x81.",  # made, not called
        b"cvlp_train.importing.reader\nread_official\n(S'x'\ntR.",
    ],
)
def test_hand_written_programs_are_refused(program: bytes, tmp_path: Path) -> None:
    path = archive(tmp_path / "model.pth.tar-1", program)

    with pytest.raises(UnsafeFileError):
        read_official(path)


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    path = archive(tmp_path / "file", b"cos\nsys\x1b[2Jtem\n.")

    with pytest.raises(UnsafeFileError) as error:
        read_official(path)
    assert str(error.value).isprintable()


def archive(path: Path, program: bytes, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", program)
        for name, content in entries.items():
            file.writestr(f"archive/{name.replace('__', '/').replace('_pkl', '.pkl')}", content)
    return path


@pytest.mark.parametrize("stream", [False, True])
def test_a_scheduler_object_is_no_call(stream: bool, tmp_path: Path) -> None:
    content = checkpoint({"ctx": values(4, 24)}, epoch=3, planned=20)

    file = read_official(save(content, tmp_path / "model.pth.tar-3", stream=stream))

    assert (file.epoch, file.planned_epochs) == (3, 20)
    np.testing.assert_array_equal(file.state["ctx"].read(), values(4, 24).numpy())


def test_a_scheduler_of_a_lost_class_is_read(tmp_path: Path) -> None:
    content = checkpoint({"ctx": values(4, 24)}, scheduler=scheduler_of_a_lost_class())
    path = save(content, tmp_path / "model.pth.tar-5")
    with pytest.raises(ModuleNotFoundError):
        torch.load(path, map_location="cpu", weights_only=False)

    assert read_official(path).planned_epochs == 7


def test_numbers_of_numpy_do_no_harm(tmp_path: Path) -> None:
    content = checkpoint({"ctx": values(4, 24)})
    content["val_result"] = np.float64(81.5)
    content["device"], content["shape"] = torch.device("cuda", 0), torch.Size([2, 3])

    assert read_official(save(content, tmp_path / "a")).epoch == 5


def read(tensor: Any, tmp_path: Path) -> np.ndarray:
    path = save({"state_dict": {"a": tensor}}, tmp_path / "file")
    return read_official(path).state["a"].read()


@pytest.mark.parametrize(
    "kind", [torch.float16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]
)
def test_numbers_of_every_kind_are_kept(kind: torch.dtype, tmp_path: Path) -> None:
    tensor = (torch.arange(6).reshape(2, 3) % 5).to(kind)

    np.testing.assert_array_equal(read(tensor, tmp_path), tensor.numpy())


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    tensor = values(3, 5, half=False).bfloat16()

    np.testing.assert_array_equal(read(tensor, tmp_path), tensor.float().numpy())


def test_views_are_read_as_they_were_cut(tmp_path: Path) -> None:
    whole = values(4, 6, 3)

    np.testing.assert_array_equal(read(whole[:, 2:5], tmp_path), whole[:, 2:5].numpy())
    np.testing.assert_array_equal(read(whole[1].T, tmp_path), whole[1].T.numpy())
    assert read(torch.zeros(0, 3), tmp_path).shape == (0, 3)
    assert read(torch.tensor(2.5), tmp_path) == 2.5
    parameter = torch.nn.Parameter(torch.ones(2))
    np.testing.assert_array_equal(read(parameter, tmp_path), [1, 1])


def test_prefix_of_data_parallel_is_dropped(tmp_path: Path) -> None:
    path = save({"state_dict": {"module.ctx": values(2, 3)}}, tmp_path / "file")

    assert set(read_official(path).state) == {"ctx"}


def test_a_bare_state_dict_is_taken(tmp_path: Path) -> None:
    file = read_official(save({"ctx": values(2, 3)}, tmp_path / "file"))

    assert (set(file.state), file.epoch) == ({"ctx"}, None)


@pytest.mark.parametrize("shape", [(5, 3), (2, 7), (-1, 3)])
def test_a_tensor_beyond_its_storage_is_refused(shape: tuple[int, int], tmp_path: Path) -> None:
    """A view that `torch.save` never writes, made by changing the shape in the file."""
    program = (
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n("
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        b"K\x06tQK\x00("
        + b"".join(b"J" + size.to_bytes(4, "little", signed=True) for size in shape)
        + b"t(K\x03K\x01t\x89NtRs."
    )
    path = archive(tmp_path / "file", program, data__0=bytes(24))

    with pytest.raises(CheckpointError, match="beyond its storage"):
        read_official(path)


def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("model.pth.tar-50")
    with pytest.raises(CheckpointError, match="no checkpoint of PyTorch"):
        read_official(text)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        read_official(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_official(archive(tmp_path / "script", b"N.", constants_pkl=b""))
    with pytest.raises(CheckpointError, match="holds a list"):
        read_official(save([1], tmp_path / "list"))
    with pytest.raises(CheckpointError, match="no state_dict"):
        read_official(save({}, tmp_path / "empty"))
    with pytest.raises(CheckpointError, match=r"entry 'a' .* is a int"):
        read_official(save({"state_dict": {"a": 1}}, tmp_path / "numbers"))
    with pytest.raises(CheckpointError, match="compressed"):
        with zipfile.ZipFile(tmp_path / "zip", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("archive/data.pkl", b"}.")
        read_official(tmp_path / "zip")


@pytest.mark.parametrize("stream", [False, True])
def test_a_file_cut_short_is_refused_at_any_length(stream: bool, tmp_path: Path) -> None:
    whole = save(checkpoint({"ctx": values(4, 24)}), tmp_path / "file", stream=stream).read_bytes()
    cut = tmp_path / "cut"
    for length in range(0, len(whole), 97):
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            use(read_official(cut))


def use(file: OfficialFile) -> None:
    for tensor in file.state.values():
        tensor.read()


def test_importable_names_are_never_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = checkpoint({"ctx": values(4, 24)})
    path = save(content, tmp_path / "file")
    imported = []
    genuine = builtins.__import__

    def watch(name: str, *rest: Any) -> Any:
        imported.append(name)
        return genuine(name, *rest)

    monkeypatch.setattr(builtins, "__import__", watch)
    read_official(path)

    assert not [name for name in imported if name.startswith("torch")]
