"""VPT: learned tokens beside the patches, in every layer (deep) or the first one (shallow).

Source: VPT (arXiv:2203.12119), section 3.2, on CLIP as in MaPLe's code; the class embeddings are
CLIP's own and stay as they are.
"""

from dataclasses import dataclass
from typing import ClassVar

from vlp_deploy.errors import TrainingError
from vlp_deploy.formats.architecture import VisualLayout
from vlp_train.methods.base import Method, Task, Training, check_templates, random_prompts
from vlp_train.prompted import Prompts


@dataclass(frozen=True, kw_only=True)
class VptConfig:
    """How many visual tokens, in how many layers, and how they enter the tower.

    `depth` counts prompted layers from the first; none given means all (VPT-deep), 1 is
    VPT-shallow. `pre_ln` sends the first layer's prompts through `ln_pre` (MaPLe's code; DPT's adds
    them after it). `survive_last` lets the last set travel on to the end of the tower; otherwise it
    is dropped after its layer.
    """

    visual_tokens: int = 8
    depth: int | None = None
    pre_ln: bool = True
    survive_last: bool = True
    templates: tuple[str, ...] = ("a photo of a {}.",)

    def __post_init__(self) -> None:
        if self.visual_tokens < 1:
            raise ValueError(f"visual_tokens must be at least 1, got {self.visual_tokens}")
        if self.depth is not None and self.depth < 1:
            raise ValueError(f"depth must be at least 1 layer, got {self.depth}")
        check_templates(self.templates)

    def training(self, shots: int | None) -> Training:
        """MaPLe's protocol: few epochs of small batches."""
        return Training(epochs=5, learning_rate=0.0025, batch_size=4)


class Vpt(Method):
    """Learned visual tokens of their own for each prompted layer."""

    learns_text: ClassVar[bool] = False
    learns_image: ClassVar[bool] = True

    def __init__(self, config: VptConfig, task: Task) -> None:
        """Raises TrainingError if the tower has fewer layers than are to be prompted."""
        tower = task.clip.config.vision
        depth = tower.layers if config.depth is None else config.depth
        if depth > tower.layers:
            raise TrainingError(
                f"depth={depth} asks for more prompted layers than the image tower's "
                f"{tower.layers}. Give 1 to {tower.layers}, or leave depth out for all"
            )
        layout = VisualLayout(
            tokens=config.visual_tokens,
            pre_ln=config.pre_ln,
            survive_last=config.survive_last and depth < tower.layers,
        )
        super().__init__(task, templates=config.templates, visual_layout=layout)
        self.visual = random_prompts(
            depth,
            config.visual_tokens,
            tower.width,
            seed=task.seed,
            device=task.clip.logit_scale.device,
        )  # (J, m, d)

    def prompts(self) -> Prompts:
        """J layers of visual prompts."""
        return {"visual.prompts": self.visual}
