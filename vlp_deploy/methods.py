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
    "vpt": Method(
        paper="VPT, arXiv:2203.12119",
        learns="visual tokens, at the input (shallow) or in every layer (deep)",
        export="deep prompts folded into constant keys and values: on ViT-B/16 0.16 % more "
        "arithmetic",
        new_classes=True,
    ),
}
