"""Ctrl-C at a chosen line of a library, as it may come at any."""

import signal
import sys


class Lines:
    """A context that counts the lines of some folders that run, and interrupts at one of them.

    With `event="call"`, it counts and interrupts the first lines of functions only.

    Attributes:
        count: the number of lines so far.
    """

    def __init__(self, folders, stop=None, event="line"):
        self.folders, self.stop, self.event, self.count = folders, stop, event, 0

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_):
        sys.settrace(self._before)

    def _trace(self, frame, event, arg):
        if not frame.f_code.co_filename.startswith(self.folders):
            return None
        if event == self.event:
            self.count += 1
            if self.count == self.stop:
                signal.raise_signal(signal.SIGINT)
        return self._trace
