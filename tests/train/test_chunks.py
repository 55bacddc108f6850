"""Text rows in chunks: the same features and gradients, less memory, no random number drawn."""

import numpy as np
import pytest
import torch

from vlp_deploy.formats.architecture import ClipConfig, Position, Preprocessing, TextLayout
from vlp_train import chunks
from vlp_train.chunks import fitting_rows, kept_bytes
from vlp_train.clip import Clip
from vlp_train.prompted import PromptedClip

NAMES = ("red fox", "green frog", "blue whale", "yak", "tyrannosaurus rex", "a very long name")
TOKENS = 3
LAYERS = 2


def prompted(clip: Clip, chunk: int | None, position: Position = "end") -> PromptedClip:
    model = PromptedClip(
        clip,
        NAMES,
        templates=("X X X {}.",),
        preprocessing=Preprocessing(image_size=16),
        text_layout=TextLayout(tokens=TOKENS, position=position),
    )
    model.class_chunk = chunk
    return model


def learned(*shape: int) -> torch.Tensor:
    values = np.random.default_rng(0).normal(0, 0.1, shape)
    return torch.tensor(values, dtype=torch.float32, requires_grad=True)


def gradients(model: PromptedClip, name: str, *, plain: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (K, D) and the gradient of a loss that tells all of their entries apart."""
    rows = (len(NAMES),) if name == "text.class_prompts" else (LAYERS,)
    prompts = learned(*rows, TOKENS, model.clip.config.text.width)
    features = model.class_features({name: prompts}, plain=plain)
    weights = torch.linspace(-1, 1, features.numel()).view_as(features)
    (features * weights).sum().backward()
    assert prompts.grad is not None
    return features.detach(), prompts.grad


@pytest.mark.parametrize("chunk", [1, 4, 5])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("name", ["text.prompts", "text.class_prompts"])
def test_chunks_give_the_same_features_and_gradients(
    tiny_clip: Clip, name: str, plain: bool, chunk: int
) -> None:
    features, gradient = gradients(prompted(tiny_clip, 0), name, plain=plain)

    chunked, its_gradient = gradients(prompted(tiny_clip, chunk), name, plain=plain)

    assert (features - chunked).abs().max() < 1e-6  # of unit length
    assert (gradient - its_gradient).abs().max() < 1e-5 * gradient.abs().max()


@pytest.mark.parametrize("position", ["front", "middle"])
def test_chunks_take_contexts_around_the_name(tiny_clip: Clip, position: Position) -> None:
    _, gradient = gradients(prompted(tiny_clip, 0, position), "text.prompts", plain=False)

    _, chunked = gradients(prompted(tiny_clip, 2, position), "text.prompts", plain=False)

    assert (gradient - chunked).abs().max() < 1e-5 * gradient.abs().max()


def test_random_numbers_are_as_if_nothing_had_happened(tiny_clip: Clip) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)

    gradients(prompted(tiny_clip, 2), "text.prompts", plain=False)

    assert torch.rand(4).equal(expected)


def test_chunks_are_encoded_again_for_gradients_only(
    tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    encode = Clip.encode_text_fast

    def counted(self: Clip, ids: torch.Tensor, *others: torch.Tensor | None) -> torch.Tensor:
        sizes.append(len(ids))
        return encode(self, ids, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(Clip, "encode_text_fast", counted)
    model = prompted(tiny_clip, 4)

    with torch.no_grad():
        model.class_features({"text.prompts": learned(1, TOKENS, 24)})
    assert sizes == [4, 2]

    sizes.clear()
    gradients(model, "text.prompts", plain=False)
    assert sorted(sizes) == [2, 2, 4, 4]


def test_what_fits_is_not_chunked_and_what_does_not_is_cut_to_fit(
    tiny_clip: Clip, tiny_config: ClipConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = tiny_config.text
    ids = torch.ones(100, 77, dtype=torch.int64)
    eot = torch.full((100,), 76)
    needed = kept_bytes(tower, tokens=7700, length=77)

    def rows(kept: float, chunk: float) -> int:
        monkeypatch.setattr(chunks, "KEPT_BYTES", kept)
        monkeypatch.setattr(chunks, "CHUNK_BYTES", chunk)
        return fitting_rows(tower, ids, eot, None, None, plain=True)

    assert rows(needed, needed / 4) == 0
    assert rows(needed - 1, needed / 4) == 25
    assert rows(1, 1) == 1


def test_tokens_that_all_rows_share_are_counted_once(tiny_config: ClipConfig) -> None:
    tower = tiny_config.text
    ids = torch.ones(50, 77, dtype=torch.int64)
    ids[:, 20] = torch.arange(50)
    eot = torch.full((50,), 21)

    counted = []
    original = chunks.kept_bytes

    def spy(tower: object, *, tokens: int, length: float) -> float:
        counted.append((tokens, length))
        return original(tower, tokens=tokens, length=length)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "kept_bytes", spy)
        fitting_rows(tower, ids, eot, None, None, plain=False)

    assert counted == [(20 + 50 * 2, 22.0)]


@pytest.mark.parametrize("length", [12, 60])
def test_the_estimate_is_what_autograd_keeps(tiny_clip: Clip, length: int) -> None:
    """Bytes of the tensors saved for the backward pass, each storage counted once."""
    tower = tiny_clip.config.text
    ids = torch.randint(1, 1000, (20, 77), generator=torch.Generator().manual_seed(0))
    eot = torch.full((20,), length - 1)
    slots = torch.full((20, 77), -1)
    slots[:, 1:4] = torch.arange(3)
    ids[:, 0] = torch.arange(20)  # nothing is shared
    weights = {p.untyped_storage().data_ptr() for p in tiny_clip.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = tiny_clip.encode_text_fast(ids, eot, slots, learned(1, 3, tower.width))

    assert features.requires_grad
    estimate = kept_bytes(tower, tokens=20 * length, length=length)
    # The last layer, one of three here, computes one token a row.
    assert 2 / 3 * estimate < sum(kept.values()) < estimate
