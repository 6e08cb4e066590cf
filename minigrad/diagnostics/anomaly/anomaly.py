"""detect_anomaly: raise an error where the first NaN or Inf is made, and name what made it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

from minigrad.core.grad_mode import check_decorable, mode
from minigrad.diagnostics.anomaly.detector import Detector

P = ParamSpec("P")
R = TypeVar("R")


class _Active(threading.local):
    """The detectors of one thread that have begun and not ended; the newest of them looks."""

    def __init__(self) -> None:
        self.detectors: list[Detector] = []

    def watch(self) -> None:
        """Let the newest detector observe, and no other."""
        others = tuple(observer for observer in mode.observers if type(observer) is not Detector)
        mode.state = (mode.grad_enabled, (*others, *self.detectors[-1:]))


_active = _Active()


class _Detection:
    """The context and decorator that `detect_anomaly` returns. It may be entered many times."""

    def __init__(self, inf: bool) -> None:
        self._inf = inf
        self._thread = threading.local()  # several threads may be inside at once

    def __enter__(self) -> None:
        detector = Detector(self._inf, *_active.detectors[-1:])
        vars(self._thread).setdefault("entered", []).append(detector)
        _active.detectors.append(detector)
        _active.watch()

    def __exit__(self, *_: object) -> None:
        # The state before is not restored: blocks in generators may end in any order.
        _active.detectors.remove(self._thread.entered.pop())
        _active.watch()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return a function that calls `function` under detection.

        Raises:
            TypeError: if it is a generator function: its body runs after the call has returned.
        """
        check_decorable(function)

        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            with _Detection(self._inf):
                return function(*args, **kwargs)

        return wrapped


@overload
def detect_anomaly(*, inf: bool = True) -> _Detection: ...
@overload
def detect_anomaly(function: Callable[P, R], *, inf: bool = True) -> Callable[P, R]: ...
def detect_anomaly(function: Callable[..., Any] | None = None, *, inf: bool = True) -> Any:
    """Raise an AnomalyError in the block where the first NaN or Inf is made, and say what made it.

    `with detect_anomaly():`, or as a decorator, `@detect_anomaly` or `@detect_anomaly()`. The error
    names the op, the user's line that called it, and the range of each operand, and gives the cause
    if it is a known one. It looks at

    - the result of each op. If an operand is NaN already, the error names this operand: data, a
      trained leaf, or a result from before. An op that hides a NaN, as `where(isnan(x), 0, x)`
      does, is no error;
    - the gradient that each derivative passes on, and gradients that a hook or the caller put in.
      What a derivative computes on its way, and drops, is no error;
    - the gradients that are about to be added to `.grad` or returned, and that sum. On an error,
      nothing is added;
    - the loss, when a backward pass starts from it, wherever it was computed;
    - the parameters, when an optimiser has changed them.

    An Inf is an error where an op makes it of finite numbers, in every gradient, in a trained leaf,
    and as a loss. It is no error in data and constants, since -inf in a mask is meant: it is passed
    on until it is made a NaN, and then the error says where it came in. In such an op, any other
    Inf counts as passed on too. With `inf=False` only NaN are looked for, which suits code in which
    an op makes Inf on purpose, as log(0) does, and another op takes it away.

    It watches the thread that enters it, and ends when the block does, whatever happens in it. A
    block inside another replaces it for that time. Off, it costs nothing. On, an op and its
    derivative take about 17 us more together, and each result is read once or twice more: tanh of a
    million elements, forward and backward, takes twice as long.
    """
    if function is not None and not callable(function):
        raise TypeError(f"detect_anomaly takes a function to decorate, not {function!r:.60}")
    detection = _Detection(bool(inf))
    return detection if function is None else detection(function)
