"""The bug zoo: faults that a gradient checker must see, and a test suite too.

    python -m tests.zoo

prints which check kills which mutant. A mutant is a few lines: `elements`, `arrays` and `networks`
have wrong VJPs in the library's own table, `own` wrong VJPs of ops as a user writes them, `walk`
and `graph` faults of the engine. `mutant` says how they are planted, `words` what the ports to
other libraries are written with.
"""

from tests.zoo import arrays, elements, graph, networks, own, walk
from tests.zoo.mutant import FAULTS, Mutant, Port, verdict

__all__ = ["FAULTS", "MUTANTS", "Mutant", "Port", "verdict"]

MUTANTS: list[Mutant] = [
    *elements.MUTANTS,
    *arrays.MUTANTS,
    *networks.MUTANTS,
    *own.MUTANTS,
    *walk.MUTANTS,
    *graph.MUTANTS,
]
