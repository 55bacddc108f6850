"""MaPLe: coupled while training, plain prompts afterwards."""

import pytest
import torch

from tests.train.checkpoints import build, check_export, enlarge, gradients
from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.formats.architecture import VisualLayout
from vlp_train.clip import Clip


def test_text_prompts_and_couplings_learn_and_nothing_else(tiny_clip: Clip) -> None:
    found = gradients(build(tiny_clip, "maple"))

    assert {name: tuple(grad.shape) for name, grad in found.items()} == {
        "text": (3, 2, 24),
        "weight": (3, 32, 24),
        "bias": (3, 32),
    }
    for grad in found.values():
        assert (grad.flatten(1).abs().amax(dim=1) > 0).all()  # of every layer


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_checkpoint_holds_the_visual_prompts_that_the_couplings_make(
    tiny_clip: Clip, depth: int
) -> None:
    method = build(tiny_clip, "maple", depth=depth)
    state = method.state_dict()

    prompts = method.prompts()

    assert set(prompts) == {"text.prompts", "visual.prompts"}
    for layer in range(depth):
        linear = torch.nn.Linear(24, 32)
        linear.load_state_dict({"weight": state["weight"][layer], "bias": state["bias"][layer]})
        expected = linear(state["text"][layer])
        assert (prompts["visual.prompts"][layer] - expected).abs().max() < 1e-6  # float32
    assert method.prompted.visual_layout == VisualLayout(
        tokens=2, pre_ln=True, survive_last=depth < 3
    )


def test_deep_couplings_start_equal_and_the_first_one_differs(tiny_clip: Clip) -> None:
    state = build(tiny_clip, "maple").state_dict()

    assert state["weight"][1].equal(state["weight"][2])
    assert state["bias"][1].equal(state["bias"][2])
    assert not state["weight"][0].equal(state["weight"][1])
    # U(-1/√d_t, 1/√d_t)
    bound = 24**-0.5
    assert 0.9 * bound < state["weight"].abs().max() <= bound
    assert state["weight"].std() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_text_prompts_start_from_words_and_leave_fixed_ones(tiny_clip: Clip) -> None:
    method = build(tiny_clip, "maple")
    words = tiny_clip.token_embedding.weight[Tokenizer.default().encode("a photo")]

    assert method.prompts()["text.prompts"][0].equal(words)
    assert method.prompted.templates == ("a photo of a {}.",)
    assert method.prompted.text_layout.tokens == 2


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_export_equals_the_unfolded_forward_pass(tiny_clip: Clip, depth: int) -> None:
    method = build(tiny_clip, "maple", depth=depth)
    enlarge(method, 8.0)  # the product grows with the square

    contents = check_export(method, "maple")

    assert set(contents.prompts) == {"text.prompts", "visual.prompts"}
    assert contents.prompts["visual.prompts"].shape == (depth, 2, 32)
