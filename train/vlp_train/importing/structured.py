"""From official tensors to those of the methods that are more than tokens at fixed places.

Legend: J prompted layers, n class-aware layers, m prompt tokens, D joint width, d_t and d_v the
towers' widths, h hidden width, s sets of coupling weights (1 = all layers share one).
"""

from collections.abc import Mapping

import numpy as np

from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.architecture import ClipConfig, VisualLayout
from vlp_deploy.formats.structures import ClassAware, Conditioned, Coupled, Dual
from vlp_deploy.formats.weights import Floats
from vlp_train.importing.converted import Converted
from vlp_train.importing.detect import Source
from vlp_train.importing.plain import context
from vlp_train.importing.questions import Answers
from vlp_train.importing.reader import OfficialFile
from vlp_train.importing.tensors import floats, stacked

QUERY_WIDTH = 32  # of DPT's attention
LEARNED_KEYS = 10  # vectors beside the image's tokens, whatever the number of prompts
QUICK_GELU_WIDTH = 4  # of CMPA's MLP, in widths


def cocoop(source: Source, config: ClipConfig, answers: Answers) -> Converted:
    """CoCoOp (arXiv:2203.05557, section 3.2): contexts and the network that shifts them."""
    file, joint, width = source.model, config.embed_dim, config.text.width
    prompts = floats(file, "ctx", (None, width))[None]
    hidden = floats(file, "meta_net.linear1.weight", (None, joint))  # (h, D)
    return Converted(
        method="cocoop",
        tensors={
            "text.prompts": prompts,
            "cocoop.linear1.weight": hidden,
            "cocoop.linear1.bias": floats(file, "meta_net.linear1.bias", (len(hidden),)),
            "cocoop.linear2.weight": floats(file, "meta_net.linear2.weight", (width, len(hidden))),
            "cocoop.linear2.bias": floats(file, "meta_net.linear2.bias", (width,)),
        },
        text_tokens=prompts.shape[1],
        structure=Conditioned(),
        template=answers["template"],
        hyper_parameters={"context_tokens": prompts.shape[1], "hidden": len(hidden)},
    )


def dpt(source: Source, config: ClipConfig, answers: Answers) -> Converted:
    """DPT (arXiv:2208.08340, section 3.3). Its classifiers and `lns` served training only."""
    tensors = context(source.model, config)
    (text,) = tensors.values()
    visual = floats(source.parts["visual"], "ctx", (None, None, config.vision.width))
    tensors |= _class_aware(source.parts["class_aware"], config, plain=len(visual))
    if len(visual):
        tensors["visual.prompts"] = visual
    return Converted(
        method="dpt",
        tensors=tensors,
        text_tokens=text.shape[1],
        position=answers["position"],
        visual=VisualLayout(tokens=visual.shape[1] if len(visual) else 0, pre_ln=False),
        structure=ClassAware(selected=answers["cpn"], selector_template=answers["template"]),
        class_specific="text.class_prompts" in tensors,
        hyper_parameters={
            "context_tokens": text.shape[1],
            "visual_tokens": visual.shape[1],
            "first_class_aware_layer": 1 + len(visual),
            "selected": answers["cpn"],
        },
    )


def _class_aware(file: OfficialFile, config: ClipConfig, *, plain: int) -> dict[str, Floats]:
    """The generator of class-aware prompts, one of everything for each of the last n layers."""
    width, count = config.vision.width, config.vision.layers - plain
    shapes: Mapping[str, tuple[str, tuple[int, ...]]] = {
        "cavpt.meta.weight": ("meta_nets.*.weight", (width, config.embed_dim)),
        "cavpt.meta.bias": ("meta_nets.*.bias", (width,)),
        "cavpt.query.weight": ("attns.*.qmlp.weight", (QUERY_WIDTH, width)),
        "cavpt.key.weight": ("attns.*.kmlp.weight", (QUERY_WIDTH, width)),
        "cavpt.value.weight": ("attns.*.vmlp.weight", (width, width)),
        "cavpt.norm.weight": ("lns2.*.weight", (width,)),
        "cavpt.norm.bias": ("lns2.*.bias", (width,)),
    }
    context = floats(file, "ctx", (None, LEARNED_KEYS, width))  # (n, 10, d_v)
    if len(context) != count:
        raise CheckpointError(
            f"{file.path} has class-aware prompts for {len(context)} layers, its sibling prompts "
            f"for {plain}; together they must be the {config.vision.layers} of this model"
        )
    tensors = {
        name: stacked(file, official, shape, count=count)
        for name, (official, shape) in shapes.items()
    }
    return {**tensors, "cavpt.context": context}


def cmpa(source: Source, config: ClipConfig, answers: Answers) -> Converted:
    """DCP (arXiv:2305.17903). The released code never uses the text half of its module."""
    file, layers = source.model, min(config.vision.layers, config.text.layers)
    depth = min(answers["depth"], layers - 1)
    text = floats(file, "prompt_learner.prompts_text", (None, config.text.width))
    visual = floats(file, "prompt_learner.prompts_visual", (len(text), config.vision.width))
    blocks = [1] if _shared(file, depth) else list(range(1, depth + 1))
    each = [_coupling(file, block, config) for block in blocks]
    tensors = {name: np.stack([one[name] for one in each]) for name in each[0]}
    return Converted(
        method="dcp",
        tensors={"text.prompts": text[None], "cmpa.visual_prompts": visual, **tensors},
        text_tokens=len(text),
        visual=VisualLayout(tokens=len(text), pre_ln=True, survive_last=True),
        structure=_coupled(depth, answers),
        template=answers["template"],
        keeps_words=True,
        hyper_parameters={"tokens": len(text), "depth": depth, "shared": len(blocks) == 1},
    )


def _coupled(depth: int, answers: Answers) -> Coupled:
    chosen, batch = answers["context"], answers["batch_size"]
    if (chosen == "batch") != bool(batch):
        raise CheckpointError(
            "-O context=batch needs -O batch_size=, the images a batch always has (official: 4 in "
            "training, 16 in testing), and only it takes one"
        )
    return Coupled(depth=depth, context=chosen, fusing=answers["fusing"], batch_size=batch or None)


def _shared(file: OfficialFile, depth: int) -> bool:
    """Whether all blocks have the same module (PS=True): one under many names, or equal copies."""
    names = [name for name in file.state if name.startswith("encoder.resblocks.1.prompt_attn.")]
    for name in names:
        first = file.state[name]
        for block in range(2, depth + 1):
            other = file.state.get(name.replace("resblocks.1.", f"resblocks.{block}.", 1))
            if other is None:
                return True
            if not first.same_place(other) and not np.array_equal(first.read(), other.read()):
                return False
    return True


def _coupling(file: OfficialFile, block: int, config: ClipConfig) -> dict[str, Floats]:
    """The visual half of a block's module."""
    prefix, wide = f"encoder.resblocks.{block}.prompt_attn", config.vision.width
    hidden = QUICK_GELU_WIDTH * wide
    shapes: Mapping[str, tuple[str, tuple[int, ...]]] = {
        "text_to_visual.weight": ("proj_t2v.weight", (wide, config.text.width)),
        "text_to_visual.bias": ("proj_t2v.bias", (wide,)),
        "attention.in_proj_weight": ("promt_attention_visual.in_proj_weight", (3 * wide, wide)),
        "attention.in_proj_bias": ("promt_attention_visual.in_proj_bias", (3 * wide,)),
        "attention.out_proj_weight": ("promt_attention_visual.out_proj.weight", (wide, wide)),
        "attention.out_proj_bias": ("promt_attention_visual.out_proj.bias", (wide,)),
        "norm_1.weight": ("ln_pa_1_visual.weight", (wide,)),
        "norm_1.bias": ("ln_pa_1_visual.bias", (wide,)),
        "norm_2.weight": ("ln_pa_2_visual.weight", (wide,)),
        "norm_2.bias": ("ln_pa_2_visual.bias", (wide,)),
        "mlp.c_fc_weight": ("mlp_pa_visual.c_fc.weight", (hidden, wide)),
        "mlp.c_fc_bias": ("mlp_pa_visual.c_fc.bias", (hidden,)),
        "mlp.c_proj_weight": ("mlp_pa_visual.c_proj.weight", (wide, hidden)),
        "mlp.c_proj_bias": ("mlp_pa_visual.c_proj.bias", (wide,)),
    }
    return {
        f"cmpa.{name}": floats(file, f"{prefix}.{official}", shape)
        for name, (official, shape) in shapes.items()
    }


def dpc(source: Source, config: ClipConfig, answers: Answers) -> Converted:
    """DPC (arXiv:2503.13443) on CoOp: the prompt of the first stage and the one tuned from it.

    In the official mode `converse` the second stage stores M = w·P' + (1 - w)·P; P' is taken out
    of it in float32, because the half precision of M is amplified by 1 / w.
    """
    stored_prompts, backbone = (_unified(each.model, config) for each in source.stages)
    if backbone.shape != stored_prompts.shape:
        raise CheckpointError(
            f"{source.model.path} has {stored_prompts.shape[1]} context tokens, its first stage "
            f"{backbone.shape[1]}: they do not belong together"
        )
    weight = answers["train_weight"]
    if answers["mode"] == "converse":
        if not weight:
            raise CheckpointError(
                "files of DPC in mode converse store a mixture. Pass -O train_weight=, the "
                "official WEIGHT of the training (above 0, at most 1), to take it apart"
            )
        parallel = _unmixed(stored_prompts, backbone, np.float32(weight))
    else:  # P' itself was stored, and the weight served the mixture only
        parallel = stored_prompts
    return Converted(
        method="dpc",
        tensors={
            "dpc.backbone.text.prompts": backbone,
            "dpc.parallel.text.prompts": parallel,
        },
        text_tokens=backbone.shape[1],
        position=answers["position"],
        structure=Dual(method="coop", mixing_weight=answers["mixing_weight"]),
        hyper_parameters={
            "backbone": "coop",
            "context_tokens": backbone.shape[1],
            "mode": answers["mode"],
            "train_weight": weight or None,
            "mixing_weight": answers["mixing_weight"],
        },
    )


def _unmixed(mixture: Floats, backbone: Floats, weight: np.float32) -> Floats:
    parallel: Floats = ((mixture - (1 - weight) * backbone) / weight).astype(np.float32)
    return parallel


def _unified(file: OfficialFile, config: ClipConfig) -> Floats:
    tensors = context(file, config)
    if "text.prompts" not in tensors:
        raise CheckpointError(
            f"{file.path} has class-specific contexts, which cannot serve new classes: DPC needs "
            "unified ones"
        )
    return tensors["text.prompts"]
