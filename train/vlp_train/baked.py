"""Zero-shot with a text tower that is not CLIP's: class names to embeddings that are then fixed.

open_clip's own modules and tokenizer do the work, once. What the checkpoint keeps of it are the
embeddings, so exports and classification need neither.

Legend: N text rows, L tokens, T templates, K classes, D joint width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlp_deploy.errors import ModelError
from vlp_deploy.formats.architecture import ClipConfig
from vlp_deploy.formats.structures import Baked, Structure
from vlp_train.clip import Clip
from vlp_train.other_towers import image_tower, text_tower
from vlp_train.prompted import PLAIN, PromptedClip

ROWS = 64  # of one pass through the text tower


class OtherTextClip(Clip):
    """Both towers as open_clip has them; prompts can enter neither."""

    def __init__(self, config: ClipConfig) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.visual = image_tower(config)  # type: ignore[assignment]
        self.text = text_tower(config)
        self.logit_scale = nn.Parameter(torch.tensor(0.0))
        self.logit_bias = nn.Parameter(torch.tensor(0.0))  # 0 where the weights have none


def structure_of(clip: Clip) -> Structure:
    """`Baked` for a text tower that is not CLIP's."""
    if not isinstance(clip, OtherTextClip):
        return PLAIN
    return Baked(logit_scale=float(clip.logit_scale.exp()), logit_bias=float(clip.logit_bias))


class BakedClip(PromptedClip):
    """`PromptedClip` on an `OtherTextClip`."""

    def _rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids (T·K, L) by the model's own tokenizer; the tower itself finds their end."""
        names = [name.replace("_", " ") for name in self.class_names]
        sentences = [template.format(name) for template in self.templates for name in names]
        ids = tokenizer(self.clip.config)(sentences)
        return ids, torch.zeros(len(ids), dtype=torch.long), torch.full_like(ids, -1)

    def text_features(self, prompts: Mapping[str, Tensor], *, plain: bool = False) -> Tensor:
        """Features (T·K, D)."""
        assert isinstance(self.clip, OtherTextClip)
        return torch.cat([self.clip.text(rows) for rows in self._ids.split(ROWS)]).float()

    def logits(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Scaled cosine similarities (B, K), and the bias."""
        assert isinstance(self.structure, Baked)
        return super().logits(image_features, class_features) + self.structure.logit_bias


def tokenizer(config: ClipConfig) -> Any:
    """Sentences → token ids (N, L). Raises ModelError where its files cannot be had."""
    options = config.text.options or {}
    name = options["hf_tokenizer_name"]
    try:
        from open_clip.tokenizer import HFTokenizer

        return HFTokenizer(
            name,
            context_length=config.text.context_length,
            tokenizer_mode=options.get("tokenizer_mode"),
            **(options.get("tokenizer_kwargs") or {}),
        )
    except (ImportError, OSError, ValueError) as error:
        raise ModelError(
            f"the tokenizer {name} of this model cannot be loaded ({str(error).splitlines()[0]}). "
            "It takes `pip install transformers sentencepiece` and its files: on a machine without "
            "network, pass a .json configuration as --model whose hf_tokenizer_name is a folder "
            "that holds them"
        ) from error
