"""Live comparison with PyTorch's own database of ops, on its sample inputs, to second order.

`python -m tests.peers.op_database` prints what agrees, what is refused, and what is absent.
"""

from fnmatch import fnmatchcase
from importlib.util import find_spec

import pytest

from tests.peers.op_database import AGREES, SKIPPED, database, run
from tests.peers.op_rows import ON_PURPOSE, OUT_OF_SCOPE, ROWS

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(find_spec("expecttest") is None, reason="PyTorch's database needs it"),
]


@pytest.mark.parametrize("name", ROWS)
def test_samples_of_pytorch_agree_or_are_refused_on_purpose(name):
    if name not in database():
        pytest.skip("this version of PyTorch has no such entry")
    # Most have fewer; pooling has up to 1440, each combination of options with each.
    samples = run(name, most=100).samples
    unexpected = [
        (s.kind, s.reason, s.text)
        for s in samples
        if s.kind not in (AGREES, SKIPPED) and not s.purpose
    ]
    assert not unexpected
    assert any(s.kind == AGREES for s in samples)
    reasons = {s.purpose for s in samples}
    assert {why for names, _, why in ON_PURPOSE if name in names} == reasons - {""}


def test_what_is_out_of_scope_has_no_row():
    for pattern in " ".join(OUT_OF_SCOPE.values()).split():
        found = [name for name in database() if fnmatchcase(name, pattern)]
        assert not set(found) & set(ROWS), pattern
        assert found, pattern
