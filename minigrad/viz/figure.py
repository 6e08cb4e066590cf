"""The base class of all pictures, which a notebook shows and a file stores; their colours.

Import this module only inside functions that draw: it needs matplotlib, but importing the library
must not need it. `pyplot` is not used, so no window opens and no backend is chosen.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from minigrad.io.atomic import check_target, write_atomically

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.backend_bases import RendererBase
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ImportError(
        "pictures are drawn with matplotlib; pip install 'minigrad-lora[examples]'"
    ) from error

# From the palette of Okabe and Ito, for colour-blind readers; they differ in lightness too.
INK, BLUE, VERMILLION = "#222222", "#0072B2", "#D55E00"

SIGNED = LinearSegmentedColormap.from_list(
    "signed", ["#00213F", "#0072B2", "#A6A6A6", "#F2BE4A", "#FFF6D0"]
)
"""Dark blue below 0, grey at 0, light yellow above; without colours, dark, medium and light."""

SIZES = colormaps["cividis"]
"""Dark for small and light for large numbers; the lightness increases evenly."""

MOST_NAMES = 60  # the most rows that all have their names; of more rows, only some have
LONGEST = 36  # the most letters in the name of a row


class Picture(Figure):
    """A figure, sized in inches, that a notebook shows and that `saved` writes to a file.

    Raises:
        ValueError: if the file's ending is not that of a picture, such as .png, .svg or .pdf.
        OSError: if no file can be there, for example because the folder does not exist.
    """

    def __init__(
        self, width: float, height: float, path: str | os.PathLike[str] | None = None
    ) -> None:
        super().__init__(figsize=(width, height), dpi=100, layout="constrained")
        self._path = path
        if path is not None:
            endings = self.canvas.get_supported_filetypes()
            self._kind = Path(path).suffix[1:].lower()
            if self._kind not in endings:
                raise ValueError(
                    f"{os.fspath(path)!r} is not a picture; it may end in {', '.join(endings)}"
                )
            check_target(path, "the picture: ")

    def draw(self, renderer: RendererBase) -> None:
        """Draw the figure; only ticks may have formulas, because names may have dollar signs."""
        axes = self.findobj(Axis)
        labels = {axis.label for axis in axes}
        ticks = {text for axis in axes for text in axis.findobj(Text)} - labels
        for text in {*self.findobj(Text)} - ticks:
            text.set_parse_math(False)
        super().draw(renderer)

    def saved(self) -> Picture:
        """Save the figure, completely or not at all, and return it."""
        if self._path is not None:
            write_atomically(self._path, self.rendered(self._kind))
        return self

    def rendered(self, kind: str) -> bytes:
        """Return the bytes of an image file of this format."""
        file = io.BytesIO()
        self.savefig(file, format=kind, dpi=150)
        return file.getvalue()

    def _repr_png_(self) -> bytes:
        return self.rendered("png")


def name_rows(axis: Axis, names: Sequence[str]) -> None:
    """Put names at 0, 1, ... on an axis; of too many, put only one in every `step`."""
    step = -(-len(names) // MOST_NAMES)
    axis.set_ticks(range(0, len(names), step), short_names(names)[::step], parse_math=False)


def short_names(names: Sequence[str]) -> list[str]:
    """Return names without their middles, if they are long.

    If one is long, all names are without the path of modules that they have in common.
    """
    if max(map(len, names), default=0) > LONGEST:
        parts = [name.split(".") for name in names]
        levels = zip(*(each[:-1] for each in parts), strict=False)
        common = len(list(takewhile(lambda level: len(set(level)) == 1, levels)))
        if common:
            names = [f"…{'.'.join(each[common:])}" for each in parts]
    return [without_middle(name, LONGEST) for name in names]


def without_middle(name: str, letters: int) -> str:
    """Return a name without its middle, if it has more than this number of letters."""
    if len(name) <= letters:
        return name
    end = (letters - 1) // 2
    return f"{name[: letters - 1 - end]}…{name[-end:]}"


def ticks_at_integers(axis: Axis, most: int = 9) -> None:
    """Set at most this number of ticks, all at integers, even if there is only one integer."""
    axis.set_major_locator(MaxNLocator(most, integer=True, min_n_ticks=1))


def open_frame(*several: Axes) -> None:
    """Hide the frames of axes, except the lines at the left and at the bottom."""
    for axes in several:
        axes.spines[["top", "right"]].set_visible(False)
