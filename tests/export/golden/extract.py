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
TEMPLATES = ("template", "selector_or_zero_shot_template")
# copies of token embeddings; what DPT uses in training only
UNUSED = ("token_", "prompt_learner.token_", "classfiers.", "lns.")


def extract(source: Path, target: Path) -> None:
    """Write `case.json`, `expected.npz` and, for learned prompts, `learned.npz`."""
    case = json.loads((source / "case.json").read_text())
    target.mkdir(exist_ok=True)
    kept = {key: case[key] for key in (*KEPT, *TEMPLATES) if key in case}
    (target / "case.json").write_text(json.dumps(kept, indent=1) + "\n")
    shutil.copyfile(source / "expected.npz", target / "expected.npz")
    learned = {}
    for file in case.get("checkpoint_files", ()):
        content = torch.load(source / file, map_location="cpu", weights_only=False)
        # of several files, such as DPT's, every one has a part of the tensors
        part = f"{Path(file).parent.name.rpartition('.')[2]}." if case["method"] == "dpt" else ""
        for key, value in content["state_dict"].items():
            if not key.startswith(UNUSED):
                learned[part + key] = value.numpy()
    if learned:
        np.savez_compressed(target / "learned.npz", **learned)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        extract(Path(os.environ["VLP_GOLDEN"]) / name, HERE / name)
