"""Copy golden cases into this folder: learned tensors out of their checkpoints, and answers.

    VLP_GOLDEN=FOLDER python tests/export/golden/extract.py CASE…

The checkpoints are pickles in the format of the methods' official code. They are unpickled without
restriction here, because they are part of the project's own reference data; nothing else does that.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
KEPT = ("name", "method", "arch", "clip_seed", "classnames", "image_seed", "hyper_parameters")


def extract(source: Path, target: Path) -> None:
    """Write `case.json`, `expected.npz` and, for learned prompts, `learned.npz`."""
    case = json.loads((source / "case.json").read_text())
    target.mkdir(exist_ok=True)
    kept = {key: case[key] for key in (*KEPT, "template")}
    (target / "case.json").write_text(json.dumps(kept, indent=1) + "\n")
    shutil.copyfile(source / "expected.npz", target / "expected.npz")
    if files := case.get("checkpoint_files"):
        content = torch.load(source / files[0], map_location="cpu", weights_only=False)
        # token_prefix and token_suffix are copies of token embeddings
        learned = {
            key: value.numpy()
            for key, value in content["state_dict"].items()
            if not key.startswith(("token_", "prompt_learner.token_"))
        }
        np.savez_compressed(target / "learned.npz", **learned)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        extract(Path(os.environ["VLP_GOLDEN"]) / name, HERE / name)
