"""KgCoOp: CoOp, and how far its classes may go from the sentence's."""

import pytest
import torch
import torch.nn.functional as F

from tests.train.checkpoints import LABELS, build, check_export, enlarge, gradients, inputs
from vlp_deploy.errors import TrainingError
from vlp_train.clip import Clip
from vlp_train.methods import method_config


def test_the_context_learns_and_nothing_else(tiny_clip: Clip) -> None:
    found = gradients(build(tiny_clip, "kgcoop"))

    assert {name: tuple(grad.shape) for name, grad in found.items()} == {"context": (1, 4, 24)}
    assert found["context"].abs().max() > 0


@pytest.mark.parametrize("templates", [("art of the {}.",), ("a {}.", "my {}.")])
def test_the_loss_is_cross_entropy_and_distance_from_the_sentence(
    tiny_clip: Clip, templates: tuple[str, ...]
) -> None:
    method = build(tiny_clip, "kgcoop", templates=templates)
    sentence = build(tiny_clip, "zeroshot", templates=templates)
    given = inputs(method)

    logits, loss = method.step(given)

    learned, frozen = method.class_features(), sentence.class_features()
    cosines = F.cosine_similarity(learned, frozen, dim=1)
    entropy = F.cross_entropy(100 * given.images @ learned.T, LABELS)
    assert cosines.max() < 0.95  # the second term is there to be seen
    assert loss.item() == pytest.approx((entropy + 8 * (1 - cosines.mean())).item(), rel=1e-4)
    assert logits.shape == (4, 3)


def test_at_its_own_sentence_only_the_cross_entropy_is_left(tiny_clip: Clip) -> None:
    method, coop = (build(tiny_clip, name, words="a photo of a") for name in ("kgcoop", "coop"))

    difference = method.step(inputs(method))[1] - coop.step(inputs(coop))[1]

    assert abs(difference.item()) < 1e-4


def test_a_heavier_weight_keeps_the_classes_nearer(tiny_clip: Clip) -> None:
    def distance(weight: float) -> float:
        method = build(tiny_clip, "kgcoop", weight=weight, templates=("art of the {}.",))
        optimiser = torch.optim.SGD(method.parameters(), lr=0.01)
        for _ in range(20):
            optimiser.zero_grad()
            method.step(inputs(method))[1].backward()
            optimiser.step()
        frozen = build(tiny_clip, "zeroshot", templates=("art of the {}.",)).class_features()
        return 1 - F.cosine_similarity(method.class_features(), frozen, dim=1).mean().item()

    assert distance(100) < distance(0)


def test_the_export_equals_the_unfolded_forward_pass(tiny_clip: Clip) -> None:
    method = build(tiny_clip, "kgcoop")
    enlarge(method)

    assert set(check_export(method, "kgcoop").prompts) == {"text.prompts"}


def test_wrong_options_say_what_is_wrong() -> None:
    with pytest.raises(TrainingError, match="words must hold at least one word"):
        method_config("kgcoop", {"words": " "})
    with pytest.raises(TrainingError, match="weight must be 0 or more, got -1"):
        method_config("kgcoop", {"weight": -1})
