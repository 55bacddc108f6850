"""`vlp methods`: the prompt-learning methods, a paragraph each."""

import shutil
import textwrap

from vlp_deploy.formats.methods import METHODS

INDENT = 15


def methods() -> None:
    """List the methods: paper, what is learned, what an export makes of it and what that costs.

    The cost is more arithmetic an image than the image tower without prompts, on ViT-B/16.
    """
    width = min(shutil.get_terminal_size().columns, 100)
    for name, method in METHODS.items():
        lines = {name: method.paper}
        for what in ("learns", "export", "cost", "new_classes"):
            lines[f"  {what.replace('_', ' ')}"] = getattr(method, what)
        for head, text in lines.items():
            print(_wrapped(f"{head:<{INDENT}}{text}", width))
        print()


def _wrapped(line: str, width: int) -> str:
    return textwrap.fill(line, width, subsequent_indent=" " * INDENT, break_on_hyphens=False)
