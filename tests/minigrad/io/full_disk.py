"""A disk that is full after some bytes."""

import resource
import signal
from contextlib import contextmanager


@contextmanager
def full_disk(limit):
    """No file can be larger than this: a write beyond fails as one to a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
