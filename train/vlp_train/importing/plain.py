"""From official tensors to prompts at fixed places: CoOp, VPT, IVLP, MaPLe and their kin.

Legend: K classes, J prompted layers, m prompt tokens, d_t and d_v the towers' widths.
"""

import numpy as np

from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.architecture import ClipConfig, VisionTower, VisualLayout
from vlp_deploy.formats.weights import Floats
from vlp_train.importing.converted import Converted
from vlp_train.importing.detect import Source, stored
from vlp_train.importing.questions import Answers
from vlp_train.importing.reader import OfficialFile
from vlp_train.importing.tensors import deep_prompts, floats, numbers, stacked

DEEP_TEXT = "text_encoder.transformer.resblocks.*.VPT_shallow"
DEEP_IMAGE = "image_encoder.transformer.resblocks.*.VPT_shallow"


def context(file: OfficialFile, config: ClipConfig) -> dict[str, Floats]:
    """CoOp's `ctx`: (m, d_t) for all classes, or (K, m, d_t), one set a class."""
    width = config.text.width
    if len(stored(file, "ctx").shape) == 3:
        return {"text.class_prompts": floats(file, "ctx", (None, None, width))}
    return {"text.prompts": floats(file, "ctx", (None, width))[None]}


def coop(source: Source, config: ClipConfig, answers: Answers) -> Converted:
    """CoOp and KgCoOp, whose `bias_vectors` and `meta_net` are never used."""
    tensors = context(source.model, config)
    (prompts,) = tensors.values()
    return Converted(
        method=source.kind,
        tensors=tensors,
        text_tokens=prompts.shape[1],
        position=answers.get("position", "end"),
        template=answers["template"],
        class_specific="text.class_prompts" in tensors,
        hyper_parameters={"context_tokens": prompts.shape[1]},
    )


def vpt(source: Source, config: ClipConfig, answers: Answers) -> Converted:
    """VPT as in MaPLe's code: the first prompts go through `ln_pre`, the last ones travel on."""
    visual = _visual_prompts(source.model, config.vision)
    return Converted(
        method="vpt",
        tensors={"visual.prompts": visual},
        visual=travelling(visual, config.vision),
        template=answers["template"],
        hyper_parameters={"visual_tokens": visual.shape[1], "depth": len(visual)},
    )


def vpt_of_dpt(source: Source, config: ClipConfig, answers: Answers) -> Converted:
    """VPT as in DPT's code: the first prompts join behind `ln_pre`, every set is dropped."""
    tower = config.vision
    visual = floats(source.parts["visual"], "ctx", (tower.layers, None, tower.width))
    return Converted(
        method="vpt",
        tensors={"visual.prompts": visual},
        visual=VisualLayout(tokens=visual.shape[1], pre_ln=False),
        template=answers["template"],
        hyper_parameters={"visual_tokens": visual.shape[1], "depth": len(visual)},
    )


def independent(source: Source, config: ClipConfig, answers: Answers) -> Converted:
    """IVLP, PromptSRC (an IVLP trained otherwise), and deep language prompting."""
    file = source.model
    text = _text_prompts(file, config)
    tensors, visual = {"text.prompts": text}, VisualLayout()
    if "image_encoder.VPT" in file.state:
        prompts = tensors["visual.prompts"] = _visual_prompts(file, config.vision)
        visual = travelling(prompts, config.vision)
    return Converted(
        method=source.kind,
        tensors=tensors,
        text_tokens=text.shape[1],
        visual=visual,
        template=answers["template"],
        keeps_words=True,
        hyper_parameters={
            "text_tokens": text.shape[1],
            "text_depth": len(text),
            "visual_tokens": visual.tokens,
            "visual_depth": len(tensors.get("visual.prompts", ())),
        },
    )


def vlp_of_dpt(source: Source, config: ClipConfig, answers: Answers) -> Converted:
    """DPT's baseline VLP: CoOp's text prompts and visual prompts behind `ln_pre`."""
    tower = config.vision
    visual = floats(source.parts["visual"], "ctx", (tower.layers, None, tower.width))
    tensors = context(source.model, config)
    (text,) = tensors.values()
    return Converted(
        method="ivlp",
        tensors={**tensors, "visual.prompts": visual},
        text_tokens=text.shape[1],
        position=answers["position"],
        visual=VisualLayout(tokens=visual.shape[1], pre_ln=False),
        class_specific="text.class_prompts" in tensors,
        hyper_parameters={"text_tokens": text.shape[1], "visual_tokens": visual.shape[1]},
    )


def maple(source: Source, config: ClipConfig, answers: Answers) -> Converted:
    """MaPLe (arXiv:2210.03117, eq. 7): visual prompts are projections of the text prompts."""
    file = source.model
    text = _maple_text(file, config)  # (J, m, d_t)
    visual = np.stack(
        [_projected(file, layer, prompts, config) for layer, prompts in enumerate(text)]
    )  # (J, m, d_v)
    return Converted(
        method="maple",
        tensors={"text.prompts": text, "visual.prompts": visual},
        text_tokens=text.shape[1],
        visual=travelling(visual, config.vision),
        template=answers["template"],
        keeps_words=True,
        hyper_parameters={"tokens": text.shape[1], "depth": len(text)},
    )


def _maple_text(file: OfficialFile, config: ClipConfig) -> Floats:
    first = floats(file, "prompt_learner.ctx", (None, config.text.width))
    deeper = "prompt_learner.compound_prompts_text.*"
    found = numbers(file, deeper)
    projections = numbers(file, "prompt_learner.compound_prompt_projections.*.weight")
    if found != list(range(len(found))) or projections != found:
        raise CheckpointError(
            f"{file.path}: deep prompts {found} and their projections {projections} do not belong "
            "together; MaPLe numbers both from 0, one a layer"
        )
    layers = min(config.text.layers, config.vision.layers)
    if len(found) >= layers:
        raise CheckpointError(
            f"{file.path} prompts {1 + len(found)} layers; this model has {layers}"
        )
    if not found:
        return first[None]
    return np.concatenate([first[None], stacked(file, deeper, first.shape)])


def _projected(file: OfficialFile, layer: int, prompts: Floats, config: ClipConfig) -> Floats:
    """(m, d_t) → (m, d_v)."""
    deeper = f"prompt_learner.compound_prompt_projections.{layer - 1}"
    name = deeper if layer else "prompt_learner.proj"
    weight = floats(file, f"{name}.weight", (config.vision.width, config.text.width))
    return prompts @ weight.T + floats(file, f"{name}.bias", (config.vision.width,))


def _text_prompts(file: OfficialFile, config: ClipConfig) -> Floats:
    tower = config.text
    return deep_prompts(file, "prompt_learner.ctx", DEEP_TEXT, tower.width, tower.layers)


def _visual_prompts(file: OfficialFile, tower: VisionTower) -> Floats:
    return deep_prompts(file, "image_encoder.VPT", DEEP_IMAGE, tower.width, tower.layers)


def travelling(prompts: Floats, tower: VisionTower) -> VisualLayout:
    """The layout of MaPLe's repository: the last set stays to the end of the tower."""
    return VisualLayout(
        tokens=prompts.shape[1], pre_ln=True, survive_last=len(prompts) < tower.layers
    )
