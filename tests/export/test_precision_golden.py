"""The official cases of every structure in other precisions: the gate holds them to float32."""

import numpy as np
import pytest

from tests.export.golden.seeded_clip import clip_config, seeded_pixels, seeded_weights
from tests.export.test_golden import HERE, checkpoint_of, read_case
from vlp_export.exporter import build_bundle
from vlp_export.parity import passes
from vlp_export.precision import PrecisionTarget, in_precision

CASES = ("coop-front-csc-tiny", "cocoop-m4-tiny", "dpt-bl3-tiny", "ivlp-tiny")


@pytest.mark.parametrize("name", CASES)
def test_official_cases_stay_within_every_budget(name: str) -> None:
    case, expected, learned = read_case(HERE / name)
    weights = seeded_weights(clip_config(case["arch"]), case["clip_seed"])
    contents = build_bundle(checkpoint_of(case, expected, learned, weights), weights)
    images = seeded_pixels(16, 64, 5)

    for target in (PrecisionTarget(precision="fp16"), PrecisionTarget(precision="int8")):
        rows = in_precision(contents, target, images).manifest.parity
        lowered = [row for row in rows if row.precision == target.precision]

        assert lowered
        assert all(passes(row) for row in lowered)
        assert np.mean([row.top1_agreement for row in lowered]) >= 0.75  # of 8 images
