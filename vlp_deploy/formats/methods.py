"""The prompt-learning methods: what each one learns and what is left of it after export."""

from vlp_deploy.formats.architecture import Record


class Method(Record, frozen=True, kw_only=True):
    """One entry of `vlp methods`.

    `cost` is more arithmetic than the image tower without prompts, with the method's own defaults
    on ViT-B/16, counted from the exported graph (`tests/export/test_flops.py` and the like).
    """

    paper: str
    learns: str
    export: str
    cost: str
    new_classes: str = "yes"


TEXT_ONLY = "class embeddings baked; image encoder unchanged"
SHARED_CONTEXTS = "yes; not with a context of each class's own"

METHODS = {
    "zeroshot": Method(
        paper="CLIP, arXiv:2103.00020",
        learns="nothing: templates, averaged",
        export=TEXT_ONLY,
        cost="none",
    ),
    "coop": Method(
        paper="CoOp, arXiv:2109.01134",
        learns="context tokens in front of, around or behind the class name",
        export=TEXT_ONLY,
        cost="none",
        new_classes=SHARED_CONTEXTS,
    ),
    "cocoop": Method(
        paper="CoCoOp, arXiv:2203.05557",
        learns="context tokens before the class name, and a small network that shifts them for "
        "each image",
        export="text tower in the image's graph, run for every image and class; what classes share "
        "runs once",
        cost="for every class and image 5 to 15 % of a class's full text pass",
    ),
    "kgcoop": Method(
        paper="KgCoOp, arXiv:2303.13283",
        learns="context tokens before the class name, held near a hand-written sentence",
        export=TEXT_ONLY,
        cost="none",
    ),
    "vpt": Method(
        paper="VPT, arXiv:2203.12119",
        learns="visual tokens, at the input (shallow) or in every layer (deep)",
        export="deep prompts folded into constant keys and values",
        cost="0.16 % (deep)",
    ),
    "deep_language": Method(
        paper="deep language prompting in MaPLe, arXiv:2210.03117",
        learns="text tokens, replaced before each of the first layers",
        export=TEXT_ONLY,
        cost="none",
    ),
    "ivlp": Method(
        paper="independent V-L prompting in MaPLe, arXiv:2210.03117",
        learns="text and visual tokens, replaced before each of the first layers",
        export="class embeddings baked; deep visual prompts folded into constant keys and values",
        cost="0.04 %",
    ),
    "maple": Method(
        paper="MaPLe, arXiv:2210.03117",
        learns="text tokens in the first layers, and projections that make visual tokens of them",
        export="projections evaluated, then as ivlp; the last tokens travel on",
        cost="0.33 %",
    ),
    "promptsrc": Method(
        paper="PromptSRC, arXiv:2307.06948",
        learns="as ivlp, held near CLIP's features and answers, averaged over the epochs",
        export="as ivlp; the last tokens travel on",
        cost="0.65 %",
    ),
    "dpt": Method(
        paper="DPT, arXiv:2208.08340",
        learns="text tokens, visual tokens, and what makes visual tokens of an image's likely "
        "classes in the last layers",
        export="one graph that selects classes by the un-prompted tower; where all classes are "
        "selected anyway, one without",
        cost="98 %; without selector 0.4 %",
        new_classes="yes, with a warning; not with a context of each class's own, nor more than "
        "are selected without the selector",
    ),
    "dcp": Method(
        paper="DCP, arXiv:2305.17903",
        learns="text and visual tokens, and the cross-attention by which they change each other "
        "between the blocks",
        export="context frozen over training or calibration images, then as vpt with travelling "
        "tokens; or computed for each image",
        cost="1.9 %; computed for each image 14 %",
    ),
    "dpc": Method(
        paper="DPC, arXiv:2503.13443",
        learns="on base classes, a second prompt beside the tuned one of coop, ivlp, maple or "
        "promptsrc",
        export="mixture baked for base classes, first prompt for new ones; visual prompts make "
        "two image graphs, of which one runs",
        cost="that of the first prompt",
        new_classes="yes; with visual prompts not beside base classes",
    ),
    "dpl": Method(
        paper="our reconstruction after the abstract of DPL, arXiv:2308.10061; no result of ours "
        "is one of the paper",
        learns="prompts that both towers read beside their tokens, and how much each head does",
        export="class embeddings baked; constant keys, values and gates",
        cost="0.1 %",
    ),
}
