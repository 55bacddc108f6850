"""The prompt-learning methods: what each one learns and what is left of it after export."""

from vlp_deploy.architecture import Record


class Method(Record, frozen=True, kw_only=True):
    """One row of `vlp methods`."""

    paper: str
    learns: str
    export: str
    new_classes: bool


METHODS = {
    "zeroshot": Method(
        paper="CLIP, arXiv:2103.00020",
        learns="nothing: templates, averaged",
        export="class embeddings baked",
        new_classes=True,
    ),
    "coop": Method(
        paper="CoOp, arXiv:2109.01134",
        learns="context tokens in front of, around or behind the class name",
        export="class embeddings baked; image encoder unchanged",
        new_classes=True,
    ),
    "cocoop": Method(
        paper="CoCoOp, arXiv:2203.05557",
        learns="context tokens before the class name, and a small network that shifts them for "
        "each image",
        export="text tower in the image's graph, run for every image and class; what classes share "
        "runs once: a class costs 5 to 15 % of its own text pass",
        new_classes=True,
    ),
    "kgcoop": Method(
        paper="KgCoOp, arXiv:2303.13283",
        learns="context tokens before the class name, held near a hand-written sentence",
        export="class embeddings baked; image encoder unchanged",
        new_classes=True,
    ),
    "vpt": Method(
        paper="VPT, arXiv:2203.12119",
        learns="visual tokens, at the input (shallow) or in every layer (deep)",
        export="deep prompts folded into constant keys and values: on ViT-B/16 0.16 % more "
        "arithmetic",
        new_classes=True,
    ),
    "deep_language": Method(
        paper="deep language prompting in MaPLe, arXiv:2210.03117",
        learns="text tokens, replaced before each of the first layers",
        export="class embeddings baked; image encoder unchanged",
        new_classes=True,
    ),
    "ivlp": Method(
        paper="independent V-L prompting in MaPLe, arXiv:2210.03117",
        learns="text and visual tokens, replaced before each of the first layers",
        export="class embeddings baked; deep visual prompts folded into constant keys and values: "
        "on ViT-B/16 0.04 % more arithmetic",
        new_classes=True,
    ),
    "maple": Method(
        paper="MaPLe, arXiv:2210.03117",
        learns="text tokens in the first layers, and projections that make visual tokens of them",
        export="projections evaluated, then as ivlp; the last tokens travel on: on ViT-B/16 "
        "0.33 % more arithmetic",
        new_classes=True,
    ),
    "dpt": Method(
        paper="DPT, arXiv:2208.08340",
        learns="text tokens, visual tokens, and what makes visual tokens of an image's likely "
        "classes in the last layers",
        export="one graph that selects classes by the un-prompted tower: on ViT-B/16 1.98 times "
        "the arithmetic; where all classes are selected anyway, a graph without: 0.4 % more",
        new_classes=True,
    ),
    "dcp": Method(
        paper="DCP, arXiv:2305.17903",
        learns="text and visual tokens, and the cross-attention by which they change each other "
        "between the blocks",
        export="context frozen over training or calibration images, then as vpt with travelling "
        "tokens: on ViT-B/16 1.9 % more arithmetic; or computed for each image",
        new_classes=True,
    ),
    "promptsrc": Method(
        paper="PromptSRC, arXiv:2307.06948",
        learns="as ivlp, held near CLIP's features and answers, averaged over the epochs",
        export="as ivlp; the last tokens travel on: on ViT-B/16 0.65 % more arithmetic",
        new_classes=True,
    ),
    "dpc": Method(
        paper="DPC, arXiv:2503.13443",
        learns="on base classes, a second prompt beside the tuned one of coop, ivlp, maple or "
        "promptsrc",
        export="mixture baked for base classes, first prompt for new ones; visual prompts make "
        "two image graphs, of which one runs",
        new_classes=True,
    ),
    "dpl": Method(
        paper="our reconstruction after the abstract of DPL, arXiv:2308.10061; no result of ours "
        "is one of the paper",
        learns="prompts that both towers read beside their tokens, and how much each head does",
        export="class embeddings baked; constant keys, values and gates: on ViT-B/16 0.1 % more "
        "arithmetic",
        new_classes=True,
    ),
}
