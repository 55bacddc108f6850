"""DPT's class inputs: what the image tower is told about classes before it looks at an image.

An image's likely classes are chosen by the un-prompted tower and plain sentences (the selector);
of the features that the learned sentences give them, small linear networks make the queries that
look at the image again (DPT with CAVPT, arXiv:2208.08340, section 3.3). Neither depends on an
image, so both are computed here, once for a list of classes.

Legend: K classes, c classes selected for an image, n class-aware layers, D joint width, d width of
the image tower.
"""

from collections.abc import Mapping

import numpy as np

from vlp_deploy.classes.bank import ClassFeatures, Floats
from vlp_deploy.errors import ClassListError
from vlp_deploy.formats.bundle import CLASS_BANK, SELECTOR_MATRIX, ClassBank
from vlp_deploy.formats.structures import ClassAware, Structure

IMAGE, IMAGE_SMALL = "image", "image_small"  # roles: with a selector, and without

WARNING = (
    "DPT tunes the image tower to the classes it was trained on; on others it is reported to fall "
    "far behind the same CLIP without any prompt (LoGoPrompt, table 1: 29 % against 74 %). Measure "
    "before you rely on it: CoOp, MaPLe and PromptSRC are made for new classes"
)


def class_graph(structure: Structure, classes: int) -> str:
    """The role of the image graph that serves this many training classes.

    Where all of them are selected for every image, nothing has to be chosen, and the graph without
    the selector gives the same answers for half of the arithmetic.
    """
    small = isinstance(structure, ClassAware) and classes <= structure.selected
    return IMAGE_SMALL if small else IMAGE


def class_aware_bank(
    learned: ClassFeatures,
    prompts: Mapping[str, Floats],
    *,
    logit_scale: float,
    selector: Floats | None,
) -> ClassBank:
    """The inputs of DPT's graphs.

    `learned` are the features of the learned sentences, `selector` (K, D) the normalised ones of
    the plain sentence, None for the graph that takes none. `class_bank` (n, K, d) is what the meta
    networks make of the learned features as they are, without normalising them.
    """
    weight, bias = prompts["cavpt.meta.weight"], prompts["cavpt.meta.bias"]  # (n, d, D), (n, d)
    raw = learned.raw.astype(np.float64)
    queries = np.empty((len(weight), len(raw), weight.shape[1]), np.float32)  # (n, K, d)
    for layer in range(len(weight)):  # one at a time: all in float64 take 3 GB for 20,000 classes
        queries[layer] = raw @ weight[layer].T + bias[layer]
    plain = ClassBank.from_embeddings(learned.embeddings, logit_scale=logit_scale)
    inputs = {**plain.inputs, CLASS_BANK: queries}
    if selector is None:
        return ClassBank(inputs=inputs, embeddings=learned.embeddings, graph=IMAGE_SMALL)
    matrix = np.ascontiguousarray((logit_scale * selector).T, np.float32)  # (D, K)
    return ClassBank(
        inputs={**inputs, SELECTOR_MATRIX: matrix}, embeddings=learned.embeddings, graph=IMAGE
    )


def check_small(structure: ClassAware, classes: int) -> None:
    """Raise ClassListError for more classes than the graph without a selector can serve."""
    if classes > structure.selected:
        raise ClassListError(
            f"this prompt serves at most {structure.selected} classes, got {classes}: it was "
            "trained on no more, so every image looks for all of them, and its graph has no "
            "selector to choose among more. Give fewer, or train with more classes"
        )
