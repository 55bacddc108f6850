"""Checkpoints as the methods' official trainers write them, for the tiny CLIP of these tests.

Dassl saves state_dict, epoch, optimizer, scheduler (an object that holds the optimizer) and
val_result, from a GPU. K classes, m text tokens, d_t = 24, d_v = 32, D = 16, three layers each.
"""

import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vlp_deploy.classes.tokenizer import END_OF_TEXT, START_OF_TEXT, Tokenizer
from vlp_deploy.formats.architecture import ClipConfig
from vlp_train.importing.detect import frozen_tensors

NAMES = ("red fox", "U.S. flag", "blue_whale", "737-800")
WIDTH, WIDE, JOINT, LAYERS = 24, 32, 16, 3

State = dict[str, Tensor]
Weights = Mapping[str, np.ndarray]


def values(*shape: int, seed: int = 0, half: bool = True) -> Tensor:
    """Seeded numbers, in half precision as most learned tensors are."""
    array = np.random.default_rng([seed, *shape]).normal(0, 0.5, shape)
    return torch.tensor(array, dtype=torch.float16 if half else torch.float32)


def buffers(
    weights: Weights,
    names: Sequence[str] = NAMES,
    *,
    tokens: int,
    words: str = "",
    prefix: str = "",
) -> State:
    """`token_prefix` and `token_suffix`; the first `tokens` of `words`, or X, were learned."""
    encode = Tokenizer.default().encode
    before = words or " ".join(["X"] * tokens)
    ids = np.zeros((len(names), 77), np.int64)
    for row, name in zip(ids, names, strict=True):
        body = [START_OF_TEXT, *encode(f"{before} {name.replace('_', ' ')}."), END_OF_TEXT]
        row[: len(body)] = body
    embedded = torch.tensor(weights["token_embedding.weight"]).half()[torch.tensor(ids)]
    # views of one storage, as the official slices are
    return {
        f"{prefix}token_prefix": embedded[:, :1],
        f"{prefix}token_suffix": embedded[:, 1 + tokens :],
    }


def coop(weights: Weights, *, tokens: int = 4, names: Sequence[str] = NAMES) -> State:
    return {"ctx": values(tokens, WIDTH), **buffers(weights, names, tokens=tokens)}


def coop_class_specific(weights: Weights) -> State:
    return {"ctx": values(len(NAMES), 4, WIDTH), **buffers(weights, tokens=4)}


def kgcoop(weights: Weights) -> State:
    linear = {
        "meta_net.linear1.weight": values(WIDTH, WIDTH),
        "meta_net.linear1.bias": values(WIDTH),
    }
    return {**coop(weights), "bias_vectors": values(1, WIDTH), **linear}


def cocoop(weights: Weights) -> State:
    return {
        **coop(weights),
        "meta_net.linear1.weight": values(1, JOINT),
        "meta_net.linear1.bias": values(1),
        "meta_net.linear2.weight": values(WIDTH, 1),
        "meta_net.linear2.bias": values(WIDTH),
    }


def whole_model(weights: Weights, config: ClipConfig, kind: str = "ivlp") -> State:
    """The frozen CLIP as whole-model files hold it."""
    names = frozen_tensors(kind, config)  # type: ignore[arg-type]
    return {official: torch.tensor(weights[name]).half() for official, name in names.items()}


def vpt(weights: Weights, config: ClipConfig, *, tokens: int = 2, depth: int = 2) -> State:
    return {**whole_model(weights, config), **image_prompts(tokens, depth)}


def image_prompts(tokens: int, depth: int) -> State:
    deep = "image_encoder.transformer.resblocks"
    return {
        "image_encoder.VPT": values(tokens, WIDE, half=False),
        **{
            f"{deep}.{layer}.VPT_shallow": values(tokens, WIDE, seed=layer, half=False)
            for layer in range(1, depth)
        },
    }


def text_prompts(weights: Weights, tokens: int, depth: int, words: str = "a photo of a") -> State:
    deep = "text_encoder.transformer.resblocks"
    return {
        "prompt_learner.ctx": values(tokens, WIDTH),
        **buffers(weights, tokens=tokens, words=words, prefix="prompt_learner."),
        **{
            f"{deep}.{layer}.VPT_shallow": values(tokens, WIDTH, seed=layer, half=False)
            for layer in range(1, depth)
        },
    }


def deep_language(weights: Weights, config: ClipConfig) -> State:
    return {**whole_model(weights, config), **text_prompts(weights, 4, 3)}


def ivlp(weights: Weights, config: ClipConfig, *, words: str = "a photo of a") -> State:
    text = text_prompts(weights, 2, 2, words)
    return {**whole_model(weights, config), **text, **image_prompts(3, 3)}


def promptsrc(weights: Weights, config: ClipConfig) -> State:
    return {**ivlp(weights, config), **whole_model(weights, config, "promptsrc")}


def maple(weights: Weights, config: ClipConfig, *, depth: int = 2) -> State:
    deep: State = {}
    for index in range(depth - 1):
        name = f"prompt_learner.compound_prompt_projections.{index}"
        deep[f"prompt_learner.compound_prompts_text.{index}"] = values(2, WIDTH, seed=index)
        deep[f"{name}.weight"] = values(WIDE, WIDTH, seed=index, half=False)
        deep[f"{name}.bias"] = values(WIDE, seed=index, half=False)
    return {
        **whole_model(weights, config),
        **text_prompts(weights, 2, 1),
        "prompt_learner.proj.weight": values(WIDE, WIDTH, seed=9),
        "prompt_learner.proj.bias": values(WIDE, seed=9),
        **deep,
    }


def cmpa(weights: Weights, config: ClipConfig, *, shared: bool = True) -> State:
    state = whole_model(weights, config, "cmpa")
    state["prompt_learner.prompts_text"] = values(4, WIDTH)
    state["prompt_learner.prompts_visual"] = values(4, WIDE)
    state |= buffers(weights, tokens=4, prefix="prompt_learner.")
    shapes = {"proj_t2v": (WIDE, WIDTH), "proj_v2t": (WIDTH, WIDE)}
    for side, width in (("visual", WIDE), ("text", WIDTH)):
        attention, mlp = f"promt_attention_{side}", f"mlp_pa_{side}"
        shapes |= {
            f"{attention}.in_proj_": (3 * width, width),
            f"{attention}.out_proj": (width, width),
            f"{mlp}.c_fc": (4 * width, width),
            f"{mlp}.c_proj": (width, 4 * width),
            f"ln_pa_1_{side}": (width,),
            f"ln_pa_2_{side}": (width,),
        }
    for block in range(LAYERS):
        for name, shape in shapes.items():
            dot = "" if name.endswith("_") else "."
            key, seed = f"encoder.resblocks.{block}.prompt_attn.{name}{dot}", 0 if shared else block
            state[f"{key}weight"] = values(*shape, seed=seed)
            state[f"{key}bias"] = values(shape[0], seed=seed + 5)
    return state


def dpt_visual(first_class_aware: int, tokens: int = 2) -> State:
    return {"ctx": values(first_class_aware - 1, tokens, WIDE)}


def dpt_class_aware(first_class_aware: int) -> State:
    count = LAYERS + 1 - first_class_aware
    state = {"ctx": values(count, 10, WIDE)}
    shapes = {
        "meta_nets.{}.weight": (WIDE, JOINT),
        "meta_nets.{}.bias": (WIDE,),
        "attns.{}.qmlp.weight": (32, WIDE),
        "attns.{}.kmlp.weight": (32, WIDE),
        "attns.{}.vmlp.weight": (WIDE, WIDE),
        "lns.{}.weight": (WIDE,),
        "lns.{}.bias": (WIDE,),
        "lns2.{}.weight": (WIDE,),
        "lns2.{}.bias": (WIDE,),
        "classfiers.{}.weight": (len(NAMES), WIDE),
    }
    for index in range(count):
        state |= {name.format(index): values(*shape, seed=index) for name, shape in shapes.items()}
    return state


def checkpoint(
    state: State, *, epoch: int = 5, planned: int | None = None, scheduler: Any = None
) -> dict[str, Any]:
    """What Dassl's `save_checkpoint` puts into a file."""
    return {
        "state_dict": OrderedDict(state),
        "epoch": epoch,
        "optimizer": {
            "state": {0: {"momentum_buffer": torch.ones(2)}},
            "param_groups": [{"lr": 1}],
        },
        "scheduler": scheduler or warmed_up(planned or epoch),
        "val_result": None,
    }


def warmed_up(planned: int) -> dict[str, Any]:
    """The state of a warm-up whose successor is a scheduler object, with its optimizer inside."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, float(planned))
    return {"cons_lr": 1e-5, "successor": successor, "warmup_epoch": 1, "last_epoch": 1}


def scheduler_of_a_lost_class(module: str = "private_training_code") -> Any:
    """An object whose class can be pickled now and imported never again."""
    source = types.ModuleType(module)
    kind = type("Warmup", (), {"__module__": module, "__qualname__": "Warmup"})
    source.Warmup = kind  # type: ignore[attr-defined]
    sys.modules[module] = source
    scheduler = kind()
    scheduler.T_max, scheduler.optimizer = 7, torch.optim.SGD([torch.zeros(1)], lr=0.1)
    return scheduler


def save(content: Any, path: Path, *, stream: bool = False) -> Path:
    """Write a file as from a GPU: storages tagged cuda:0. `stream`: the format before 1.6."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(content, path, _use_new_zipfile_serialization=not stream)
    sys.modules.pop("private_training_code", None)
    return path


def run_folder(
    folder: Path, state: State, *, registered: str = "prompt_learner", epoch: int = 5, **more: Any
) -> Path:
    """The output folder of a run with one file."""
    save(checkpoint(state, epoch=epoch, **more), folder / registered / f"model.pth.tar-{epoch}")
    (folder / registered / "checkpoint").write_text(f"model.pth.tar-{epoch}\n")
    return folder


def dpt_folder(folder: Path, weights: Weights, *, first_class_aware: int = 3) -> Path:
    """The three folders of DPT."""
    part = "image_encoder.transformer."
    run_folder(folder, coop(weights))
    run_folder(folder, dpt_visual(first_class_aware), registered=f"{part}ctx_learner")
    run_folder(folder, dpt_class_aware(first_class_aware), registered=f"{part}extractor")
    return folder


@contextmanager
def nothing_may_run(folder: Path) -> Iterator[Path]:
    """A file that payloads would make, and which must not be there afterwards."""
    trace = folder / "trace"
    yield trace
    assert not trace.exists()
