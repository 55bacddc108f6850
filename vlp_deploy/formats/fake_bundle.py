"""From class names to a small bundle for the `fake` engine: complete, but nothing is learned.

For tests of code that uses a classifier. K classes, D joint width.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np

from vlp_deploy import __version__
from vlp_deploy.classes.inputs import ClassSource, build_bank
from vlp_deploy.classes.tokenizer import VOCABULARY_PATH
from vlp_deploy.engines.base import EngineOptions
from vlp_deploy.engines.fake import FakeEngine, FakeGraph
from vlp_deploy.formats.architecture import (
    Backbone,
    ClipConfig,
    Preprocessing,
    TextLayout,
    TextTower,
    VisionTower,
    VisualLayout,
)
from vlp_deploy.formats.bundle import (
    BundleContents,
    ClassBank,
    Golden,
    GraphInfo,
    Manifest,
    NewClasses,
    write_bundle,
)
from vlp_deploy.formats.structures import Plain

TEMPLATES = ("a photo of a {}.",)


def write_fake_bundle(
    path: Path,
    classes: Sequence[str],
    *,
    image_size: int = 32,
    embed_dim: int = 16,
    templates: Sequence[str] = TEMPLATES,
    seed: int = 0,
    replace: bool = False,
) -> None:
    """Write a bundle that classifies with the `fake` engine; it is complete and passes `verify`."""
    graphs = {
        f"{role}{FakeEngine.reads}": msgspec.json.encode(
            FakeGraph(role=role, embed_dim=embed_dim, seed=seed)
        )
        for role in ("image", "text")
    }
    manifest = Manifest(
        method="zeroshot",
        backbone=_backbone(image_size, embed_dim),
        preprocessing=Preprocessing(image_size=image_size),
        engine=FakeEngine.name,
        precision="fp32",
        graphs={
            Path(name).stem: GraphInfo(file=name, opset=0, nodes=0, flops=0) for name in graphs
        },
        classes=tuple(classes),
        templates=tuple(templates),
        text_layout=TextLayout(),
        visual_layout=VisualLayout(),
        logit_scale=100.0,
        new_classes=NewClasses(),
        tools={"vlp-deploy": __version__},
        parity=(),
        history=(),
    )
    with TemporaryDirectory() as folder:
        for name, content in graphs.items():
            (Path(folder) / name).write_bytes(content)
        bank = _bank(Path(folder) / "text.fake", manifest)
        golden = _golden(Path(folder) / "image.fake", manifest, bank)
    contents = BundleContents(
        manifest=manifest,
        graphs=graphs,
        prompts={},
        bank=bank,
        golden=golden,
        vocabulary=VOCABULARY_PATH.read_bytes(),
    )
    write_bundle(contents, path, replace=replace)


def _bank(graph: Path, manifest: Manifest) -> ClassBank:
    engine = FakeEngine(graph, EngineOptions())
    source = ClassSource(
        structure=Plain(),
        config=manifest.backbone.config,
        layout=manifest.text_layout,
        templates=manifest.templates,
        prompts={},
        logit_scale=manifest.logit_scale,
        base_classes=(),
        run=lambda _, inputs: engine.run(inputs),
    )
    return build_bank(source, [[name] for name in manifest.classes])


def _golden(graph: Path, manifest: Manifest, bank: ClassBank) -> Golden:
    size = manifest.preprocessing.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, size, size), np.uint8)
    outputs = FakeEngine(graph, EngineOptions()).run({"image": pixels, **bank.inputs})
    return Golden(pixels=pixels, embeddings=outputs["embedding"], logits=outputs["logits"])


def _backbone(image_size: int, embed_dim: int) -> Backbone:
    """Describes towers that nobody runs, of plausible shapes."""
    vision = VisionTower(
        image_size=image_size, patch_size=8, width=embed_dim, layers=1, heads=1, mlp_width=embed_dim
    )
    text = TextTower(
        context_length=77,
        vocab_size=49_408,
        width=embed_dim,
        layers=1,
        heads=1,
        mlp_width=embed_dim,
    )
    config = ClipConfig(embed_dim=embed_dim, quick_gelu=False, vit=vision, text=text)
    return Backbone(name="fake", pretrained="fake", sha256="0" * 64, config=config)
