"""From the name of a backbone to its weights, proven to be those that the prompts were tuned on.

A safetensors file is read as it is. Names of pretrained weights are known to open_clip; it is asked
for them where the `train` extra is installed, and this package itself needs no PyTorch.
"""

from pathlib import Path

import numpy as np

from vlp_deploy import embedded
from vlp_deploy.errors import ModelError
from vlp_deploy.extras import load_function
from vlp_deploy.formats.architecture import Backbone
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_deploy.formats.structures import Baked
from vlp_deploy.formats.weights import Floats, fingerprint, load_weights

FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
RESOLVER = "vlp_train.backbones:pretrained_weights"


def load_backbone(backbone: Backbone, pretrained: str | None) -> dict[str, Floats]:
    """The weights of `backbone`, from a file or a tag; its own tag by default.

    Raises ModelError if there are none, or if they are not those the prompts belong to;
    MissingExtraError if only open_clip could know them and is not installed.
    """
    source, weights = _find(backbone, pretrained)
    found = fingerprint(weights)
    if found != backbone.sha256:
        remedy = "Pass the weights used in training with --pretrained"
        if backbone.name == embedded.MODEL_NAME and pretrained is None:
            remedy = "The prompts come from another version of vlp-deploy: train them again"
        raise ModelError(
            f"wrong backbone: the weights in {source} have fingerprint {found[:12]}…, but the "
            f"prompts were tuned on {backbone.name} ({backbone.pretrained}) with fingerprint "
            f"{backbone.sha256[:12]}…. {remedy}"
        )
    return weights


def load_weights_of(checkpoint: PromptCheckpoint, pretrained: str | None) -> dict[str, Floats]:
    """What graphs are written from: the backbone's weights, or less where classes are baked.

    Raises what `load_backbone` does.
    """
    structure = checkpoint.header.structure
    if isinstance(structure, Baked):
        return {"logit_scale": np.array(np.log(structure.logit_scale), np.float32)}
    return load_backbone(checkpoint.header.backbone, pretrained)


def _find(backbone: Backbone, pretrained: str | None) -> tuple[str, dict[str, Floats]]:
    """Where the weights come from, and the weights."""
    if backbone.name == embedded.MODEL_NAME and pretrained in (None, embedded.PRETRAINED):
        path = embedded.weights_path()
        return str(path), load_weights(path, backbone.config)
    tag = pretrained or backbone.pretrained
    if tag.endswith(FILES) and pretrained is None:
        raise ModelError(
            f"the prompts belong to {backbone.name} with the weights {tag}, which are not part of "
            f"the installation. Pass that file with --pretrained. {HOW_TO_SAVE}"
        )
    if tag.endswith(FILES[1:]):
        raise ModelError(
            f"--pretrained {tag} is a PyTorch file, which can run code when it is opened. "
            f"Export reads safetensors. {HOW_TO_SAVE}"
        )
    if tag.endswith(FILES):
        return tag, load_weights(Path(tag), backbone.config)
    resolve = load_function(
        RESOLVER,
        what=f"Without --pretrained FILE.safetensors, fetching {tag!r} of {backbone.name}",
    )
    weights: dict[str, Floats] = resolve(backbone.name, tag, backbone.config)
    return f"{backbone.name} ({tag})", weights


HOW_TO_SAVE = (
    "To make one where open_clip is installed: safetensors.torch.save_file({k: v.contiguous() for "
    "k, v in open_clip.create_model(NAME, pretrained=TAG).state_dict().items()}, "
    "'weights.safetensors')"
)
