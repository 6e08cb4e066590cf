"""The bug zoo: faults that a gradient checker must find, and the test suite too.

    python -m tests.zoo

prints which check finds which fault. A mutant is the library with one fault, which takes a few
lines. The faults in `elements`, `arrays` and `networks` are wrong VJPs of the library's own ops,
those in `own` wrong VJPs of ops that a user has written, and those in `walk` and `graph` are faults
of the engine. `mutant` plants them. `words` has what the ports to other libraries share.
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
