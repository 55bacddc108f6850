"""From the name of a backbone to its weights, proven to be those that the prompts were tuned on."""

from pathlib import Path

from vlp_deploy import embedded
from vlp_deploy.architecture import Backbone
from vlp_deploy.errors import ModelError
from vlp_deploy.weights import Floats, fingerprint, load_weights

PICKLES = (".pt", ".pth", ".bin", ".ckpt")


def load_backbone(backbone: Backbone, pretrained: str | None) -> dict[str, Floats]:
    """The weights of `backbone`. Raises ModelError if they are not those the prompts belong to."""
    path = resolve_weights(backbone, pretrained)
    weights = load_weights(path, backbone.config)
    found = fingerprint(weights)
    if found != backbone.sha256:
        remedy = "Pass the weights used in training with --pretrained"
        if pretrained is None:
            remedy = "The prompts come from another version of vlp-deploy: train them again"
        raise ModelError(
            f"wrong backbone: the weights in {path} have fingerprint {found[:12]}…, but the "
            f"prompts were tuned on {backbone.name} ({backbone.pretrained}) with fingerprint "
            f"{backbone.sha256[:12]}…. {remedy}"
        )
    return weights


def resolve_weights(backbone: Backbone, pretrained: str | None) -> Path:
    """The safetensors file that holds the weights. Raises ModelError saying how to get one."""
    if pretrained is None and backbone.name == embedded.MODEL_NAME:
        return embedded.weights_path()
    if pretrained is None:
        raise ModelError(
            f"the prompts belong to {backbone.name} ({backbone.pretrained}), whose weights are not "
            f"part of the installation. Pass them with --pretrained FILE.safetensors. {HOW_TO_SAVE}"
        )
    path = Path(pretrained)
    if path.suffix == ".safetensors":
        return path
    if path.suffix in PICKLES:
        raise ModelError(
            f"--pretrained {pretrained} is a PyTorch file, which can run code when it is opened. "
            f"Export reads safetensors. {HOW_TO_SAVE}"
        )
    raise ModelError(
        f"--pretrained {pretrained} is no .safetensors file. Names of pretrained weights are known "
        f"to open_clip, which needs PyTorch, and export works without it. {HOW_TO_SAVE}"
    )


HOW_TO_SAVE = (
    "To make one where open_clip is installed: safetensors.torch.save_file({k: v.contiguous() for "
    "k, v in open_clip.create_model(NAME, pretrained=TAG).state_dict().items()}, "
    "'weights.safetensors')"
)
