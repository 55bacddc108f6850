"""Logits that an engine would round are computed by the host, in float32."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from vlp_deploy import Classifier, embedded
from vlp_deploy.classes.towers import run_graph
from vlp_deploy.engines.base import Engine, EngineOptions
from vlp_deploy.engines.fake import FakeEngine
from vlp_deploy.formats.bundle import Bundle, write_bundle


class Rounds(FakeEngine):
    """Gives logits in steps of a half and says so."""

    @property
    def rounds_logits(self) -> bool:
        return True

    def _run(self, inputs: Any) -> dict[str, NDArray[Any]]:
        outputs = super()._run(inputs)
        return {**outputs, "logits": np.round(2 * outputs["logits"]) / 2}


class SaysNothing(Rounds):
    """Rounds as well, but does not say so."""

    @property
    def rounds_logits(self) -> bool:
        return False


@pytest.mark.parametrize(("engine", "corrected"), [(Rounds, True), (SaysNothing, False)])
def test_rounded_logits_are_replaced_where_the_engine_says_so(
    engine: type[Engine], corrected: bool, fake_bundle: Path
) -> None:
    bundle = Bundle(fake_bundle)
    golden, bank = bundle.golden(), bundle.class_bank()
    loaded = engine(bundle.graph_path("image"), EngineOptions())

    outputs = run_graph(loaded, {"image": golden.pixels, **bank.inputs})

    np.testing.assert_array_equal(outputs["embedding"], golden.embeddings)
    assert np.allclose(outputs["logits"], golden.logits, rtol=0, atol=1e-4) == corrected


def test_logits_without_a_class_matrix_stay_the_engines() -> None:
    """CoCoOp's, which no host can compute from embeddings."""
    rounded = {"embedding": np.ones((1, 2), np.float32), "logits": np.array([[0.5]], np.float32)}
    engine = type("Engine", (), {"rounds_logits": True, "run": lambda *_: dict(rounded)})()

    assert run_graph(engine, {"class_suffix": np.zeros(1)}) == rounded


# said where the processor has none: there the graph's own logits are float32
@pytest.mark.filterwarnings("ignore:this processor has no bfloat16 units")
def test_logits_of_a_bfloat16_bundle_in_openvino_are_those_of_its_embeddings(
    tmp_path: Path,
) -> None:
    pytest.importorskip("openvino", reason="the engine under test")
    plain = Bundle(embedded.default_bundle()).contents()
    manifest = msgspec.structs.replace(plain.manifest, engine="openvino", precision="bf16")
    write_bundle(replace(plain, manifest=manifest), tmp_path / "bf16", replace=False)
    classifier = Classifier.load(tmp_path / "bf16", engine="openvino", threads=1)

    found = classifier.logits(plain.golden.pixels)

    expected = plain.bank.host_logits(classifier.embed(plain.golden.pixels))
    # float32 sums in another order, of logits up to 25; bfloat16's steps there are 0.125
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
