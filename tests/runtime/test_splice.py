"""A stripped graph and its weights make the whole graph again."""

import numpy as np
import pytest

from vlp_deploy.formats.splice import Graft, _varint, splice

WEIGHTS = {"w": np.arange(12 * 4, dtype=np.float16).reshape(12, 4)}


def graft(form: str, *, head_width: int = 0) -> Graft:
    return Graft(initializer="i", tensor="w", form=form, head_width=head_width)  # type: ignore[arg-type]


def test_varint_is_protobufs() -> None:
    assert _varint(1) == b"\x01"
    assert _varint(150) == b"\x96\x01"  # the example of protobuf's encoding guide
    assert _varint(2**35) == b"\x80\x80\x80\x80\x80\x01"


def test_packed_query_scaled_divides_only_the_query() -> None:
    value = graft("packed_query_scaled", head_width=16).apply(WEIGHTS)  # (4, 12)

    expected = WEIGHTS["w"].astype(np.float32).T.copy()
    expected[:, :4] /= 4
    np.testing.assert_array_equal(value, expected)


def test_apply_leaves_the_weights_alone() -> None:
    before = WEIGHTS["w"].copy()

    graft("packed_query_scaled", head_width=16).apply(WEIGHTS)

    np.testing.assert_array_equal(WEIGHTS["w"], before)


@pytest.mark.parametrize("form", ["as_stored", "transposed", "packed_query_scaled"])
def test_splice_appends_a_readable_initializer(form: str) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["i"], ["o"])],
        "g",
        [],
        [onnx.helper.make_tensor_value_info("o", 1, None)],
    )
    stripped = onnx.helper.make_model(graph).SerializeToString()

    model = onnx.load_from_string(splice(stripped, [graft(form, head_width=4)], WEIGHTS))

    assert [node.op_type for node in model.graph.node] == ["Identity"]
    (initializer,) = model.graph.initializer
    assert initializer.name == "i"
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(initializer), graft(form, head_width=4).apply(WEIGHTS)
    )
