"""`vlp methods`: the prompt-learning methods as a table."""

from rich.console import Console
from rich.table import Table

from vlp_deploy.methods import METHODS


def methods() -> None:
    """List the methods: paper, what is learned, what an export makes of it."""
    table = Table("method", "paper", "learns", "export", "new classes")
    for name, method in METHODS.items():
        allowed = "yes" if method.new_classes else "no"
        table.add_row(name, method.paper, method.learns, method.export, allowed)
    Console(markup=False).print(table)
