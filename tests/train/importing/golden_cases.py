"""Golden cases as a user of `vlp import` meets them: complete files, a model, and what to say."""

import importlib.util
import json
import os
import shutil
import sys
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from tests.conftest import GOLDEN_REASON
from tests.export.golden.seeded_clip import Floats, clip_config, seeded_weights

TINY = "tiny-test-quickgelu"
LOCAL = Path(__file__).parent / "golden"
ARCHITECTURES = (TINY, "ViT-B-32-quickgelu", "ViT-B-16-quickgelu")  # quick ones first


@dataclass(frozen=True)
class Case:
    """One golden case, its files complete in a folder of the test's own."""

    info: dict[str, Any]
    source: Path
    files: Path

    @property
    def options(self) -> dict[str, str]:
        """What the files do not say."""
        hyper, template = self.info["hyper_parameters"], "selector_or_zero_shot_template"
        match self.info["method"]:
            case "coop":
                return {"position": hyper["ctp"]}
            case "dpt":
                return {"template": self.info[template], "cpn": str(hyper["cpn"])}
            case "dpt_vpt":
                return {"template": self.info[template]}
            case "cmpa":
                return {"depth": str(hyper["depth"]), "fusing": hyper["fusing"]}
            case "dpc":
                return {
                    "stage1": str(self.files / "stage1"),
                    "train_weight": str(hyper["w_b"]),
                    "mode": "converse",
                }
            case _:
                return {}

    @property
    def needs_classes(self) -> bool:
        """Whether the files hold no class names."""
        return self.info["method"] in ("vpt", "dpt_vpt")

    def class_file(self) -> Path:
        """The training class names, one a line."""
        path = self.files / "classes.txt"
        path.write_text("\n".join(self.info["classnames"]) + "\n", encoding="utf-8")
        return path


def cases() -> list[Any]:
    """Folders of all cases that hold a checkpoint, small models first.

    Two are here; the others are where VLP_GOLDEN says, or skipped.
    """
    folder = os.environ.get("VLP_GOLDEN")
    files = {path.parent.name: path for path in Path(folder or LOCAL).glob("*/case.json")}
    files |= {path.parent.name: path for path in LOCAL.glob("*/case.json")}
    infos = {path.parent: json.loads(path.read_text()) for path in files.values()}
    found = [source for source, info in infos.items() if info.get("checkpoint_files")]
    found.sort(key=lambda source: (ARCHITECTURES.index(infos[source]["arch"]), source.name))
    parameters = [
        pytest.param(source, id=f"{infos[source]['arch']}-{source.name}") for source in found
    ]
    if folder:
        return parameters
    return [*parameters, pytest.param("", marks=pytest.mark.skip(reason=GOLDEN_REASON), id="rest")]


def complete_case(source: Path, folder: Path) -> Case:
    """A case with its official files as they were, large seeded tensors put back."""
    info = json.loads((source / "case.json").read_text())
    if not info["needs_assembly"]:
        for file in filter(Path.is_file, source.rglob("*")):
            target = folder / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)  # without its permissions
        return Case(info, source, folder)
    clip = weights_of(info["arch"], info["clip_seed"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the script leaves files open
        _assembler(source.parent).assemble(str(source), str(folder), clip=clip)
    return Case(info, source, folder)


@lru_cache(maxsize=1)  # the large ones take 600 MB
def weights_of(arch: str, seed: int) -> dict[str, Floats]:
    return seeded_weights(clip_config(arch), seed)


def model_files(info: dict[str, Any], folder: Path) -> tuple[str, str]:
    """What `--model` and `--pretrained` take, written once for each architecture."""
    model, weights = folder / f"{info['arch']}.json", folder / f"{info['arch']}.safetensors"
    if not weights.exists():
        for other in folder.glob("*.safetensors"):
            other.unlink()  # cases come in order, one large file is enough
        config = clip_config(info["arch"])
        vision, text = config.vision, config.text
        towers = {
            "embed_dim": config.embed_dim,
            "quick_gelu": config.quick_gelu,
            "vision_cfg": {
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "width": vision.width,
                "layers": vision.layers,
            },
            "text_cfg": {"width": text.width, "heads": text.heads, "layers": text.layers},
        }
        model.write_text(json.dumps(towers))
        save_file(weights_of(info["arch"], info["clip_seed"]), weights)
    return str(model), str(weights)


@lru_cache(maxsize=1)
def _assembler(golden: Path) -> Any:
    """The golden data's own script, which imports its neighbour."""
    sys.path.insert(0, str(golden))
    try:
        spec = importlib.util.spec_from_file_location("golden_assemble", golden / "assemble.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(golden))
    return module
