"""What else than the trained classes an export has to prove, by structure.

A structure whose graphs serve in more than one way has a function here, and a checkpoint of it has
a reference for each way.
"""

from collections.abc import Callable

from vlp_deploy.classes.inputs import ClassSource, Synonyms
from vlp_deploy.formats.bundle import ClassBank
from vlp_deploy.formats.structures import Dual, Structure
from vlp_export.dual import new_banks

Banks = dict[str, ClassBank]  # by the reference tensor that they have to reproduce

FURTHER_BANKS: dict[type[Structure], Callable[[ClassSource, Synonyms], Banks]] = {Dual: new_banks}


def further_banks(source: ClassSource, names: Synonyms) -> Banks:
    """The trained classes' other inputs; most structures have none."""
    further = FURTHER_BANKS.get(type(source.structure))
    return {} if further is None else further(source, names)
