"""What a bundle is compared with gives the tuned model's answers, whichever way PyTorch runs it."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.checkpoints import LOGIT_TOLERANCE, PIXELS, build, enlarge
from vlp_deploy.engines.base import EngineOptions
from vlp_deploy.engines.onnx import OnnxEngine
from vlp_deploy.errors import EngineError
from vlp_train.clip import Clip
from vlp_train.compiled import CompiledClassifier
from vlp_train.eager import EagerClassifier
from vlp_train.stock_onnx import StockOnnxClassifier, export


@pytest.fixture
def eager(tiny_clip: Clip) -> EagerClassifier:
    """MaPLe: prompts in both towers, in several layers."""
    method = build(tiny_clip, "maple", depth=2)
    enlarge(method)
    prompts = {name: value.detach() for name, value in method.prompts().items()}
    return EagerClassifier(method.prompted, prompts)


def test_stock_export_gives_the_answers_of_the_model_at_any_batch(
    eager: EagerClassifier, tmp_path: Path
) -> None:
    export(eager, torch.from_numpy(PIXELS[:2]), tmp_path / "model.onnx")

    stock = StockOnnxClassifier(OnnxEngine(tmp_path / "model.onnx", EngineOptions(threads=1)))

    for batch in (1, 3):
        difference = stock.logits(PIXELS[:batch]) - eager.logits(PIXELS[:batch])
        assert np.abs(difference).max() <= LOGIT_TOLERANCE
    assert list(tmp_path.iterdir()) == [tmp_path / "model.onnx"]  # weights and all


def test_a_model_that_pytorch_cannot_export_is_told(
    eager: EagerClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*args: object, **options: object) -> None:
        raise torch.onnx.OnnxExporterError("no such operator")

    monkeypatch.setattr(torch.onnx, "export", refuses)

    with pytest.raises(EngineError, match=r"to ONNX: no such operator. Leave openclip-onnx"):
        export(eager, torch.from_numpy(PIXELS[:2]), tmp_path / "model.onnx")


def test_compiled_model_gives_the_answers_of_the_model(eager: EagerClassifier) -> None:
    # "eager" traces the model as torch.compile does, but writes no C++, which would take a minute
    compiled = CompiledClassifier(eager, backend="eager")

    for batch in (1, 3):
        difference = compiled.logits(PIXELS[:batch]) - eager.logits(PIXELS[:batch])
        assert np.abs(difference).max() <= LOGIT_TOLERANCE


def test_every_batch_size_is_compiled() -> None:
    compiled: list[object] = []

    class Model:
        def predict(self, pixels: torch.Tensor) -> torch.Tensor:
            return 2.0 * pixels.flatten(1)

    def counting(graph: object, inputs: object) -> object:
        compiled.append(graph)
        return graph

    rival = CompiledClassifier(Model(), backend=counting)
    for batch in range(1, 11):  # by itself PyTorch gives up after eight
        rival.logits(np.ones((batch, 3, 1, 1), np.uint8))

    assert len(compiled) == 10


def test_what_another_run_left_half_compiled_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "left by a run that was killed"))

    class Model:
        def predict(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels

    rival = CompiledClassifier(Model())
    rival.use_fresh_cache()

    assert list(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).iterdir()) == []


def test_a_missing_compiler_is_told(
    eager: EagerClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_compiler(graph: object, inputs: object) -> None:
        raise RuntimeError("no C++ compiler")

    compiled = CompiledClassifier(eager, backend=without_compiler)

    with pytest.raises(EngineError, match=r"cannot compile this model.*no C\+\+ compiler.*g\+\+"):
        compiled.logits(PIXELS[:1])
