"""`python -m vlp_train.pretrain`: from icon packages to `vlp-tiny` with one command."""

import sys

from vlp_deploy.cli import guarded
from vlp_deploy.extras import load_function


def main() -> None:
    """Run the command behind its extra."""
    target = "vlp_train.pretrain.command:main"
    load_function(target, what="pre-training", extra="pretrain")()


if __name__ == "__main__":
    sys.exit(guarded(main))
