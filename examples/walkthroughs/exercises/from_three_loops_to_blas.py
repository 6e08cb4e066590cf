"""The exercises of "From three loops to the speed of BLAS"."""

from __future__ import annotations

from typing import Any

import numpy as np

from examples.walkthroughs.checking import Checker, Exercise, WrongAnswerError, described


def cache_lines(n: int, size: int = 4) -> tuple[int, int]:
    """Return how many lines of 64 bytes a column and a row of elements of `size` bytes are in."""
    return len({k * n * size // 64 for k in range(n)}), len({j * size // 64 for j in range(n)})


Pair = tuple[int, int]

STEPS = {"k": ("1", "n", "0"), "j": ("0", "1", "1"), "i": ("n", "0", "n")}
BY_COLUMNS = {"k": ("n", "1", "0"), "j": ("0", "n", "n"), "i": ("1", "0", "1")}


def steps(table: dict[str, tuple[str, str, str]], unit: int = 1, power: int = 1) -> Any:
    """Return a function that looks up the steps, and multiplies them by a unit."""

    def function(innermost: str, n: int) -> tuple[int, ...]:
        values = {"0": 0, "1": unit, "n": unit * n**power}
        return tuple(values[step] for step in table[innermost])

    return function


def tiles(sums: int = 8, row: int = 1, number: int = 1, loads: bool = True) -> list[Pair]:
    """Return the tiles of 16 registers, with some of the conditions changed."""
    return [
        (r, v)
        for r in range(1, 17)
        for v in range(1, 17)
        if r * v + row * v + number <= 16 and r * v >= sums and (not loads or r + v <= r * v)
    ]


def pairs(answer: Any) -> list[Pair]:
    """Return pairs of numbers in order, whatever order and kind of collection they are in.

    Raises:
        WrongAnswerError: if the answer is not a collection of pairs.
    """
    try:
        return sorted({(int(r), int(v)) for r, v in answer})
    except (TypeError, ValueError) as error:
        raise WrongAnswerError(
            f"A list of pairs (r, v) is expected, and this is {described(answer)}."
        ) from error


def panels(A: Any, height: int) -> Any:
    """Return the panels of a matrix, with zeros below it."""
    m, k = A.shape
    count = -(-m // height)
    padded = np.zeros((count * height, k), A.dtype)
    padded[:m] = A
    return padded.reshape(count, height, k).swapaxes(1, 2)


def always_padded(A: Any, height: int) -> Any:
    """Add a panel even if the rows are a multiple of the height."""
    below = np.zeros((height - len(A) % height, A.shape[1]), A.dtype)
    return panels(np.concatenate([A, below]), height)


def padded_above(A: Any, height: int) -> Any:
    """Put the zeros into the first panel."""
    return panels(np.concatenate([np.zeros((-len(A) % height, A.shape[1])), A]), height)


def by_lines(A: Any, height: int) -> Any:
    """Reshape the numbers as they are in memory, without exchanging axes."""
    m, k = A.shape
    return panels(A, height).swapaxes(1, 2).reshape(-(-m // height), k, height)


def interleaved(A: Any, height: int) -> Any:
    """Deal the rows out to the panels, like cards."""
    count = -(-len(A) // height)
    whole = np.concatenate([A, np.zeros((count * height - len(A), A.shape[1]), A.dtype)])
    return np.stack([whole[i::count].T for i in range(count)])


def per_byte(m: int, k: int, n: int) -> float:
    """Return the operations per byte of a product in float32."""
    return 2 * m * k * n / (4 * (m * k + k * n + m * n))


check = Checker(
    {
        1: Exercise(
            cache_lines,
            trials=[(64,), (100,), (8,), (672,)],
            slips={
                "The two are exchanged: down a column, from one number to the next it is a whole "
                "row.": lambda n: cache_lines(n)[::-1],
                "Neighbours share a line: 16 numbers of 4 bytes fit into 64 bytes.": lambda n: (
                    cache_lines(n)[0],
                    n,
                ),
                "These are the lines of 64 numbers. A line has 64 bytes, and a number has 4.": (
                    lambda n: cache_lines(n, 1)
                ),
                "A number of float32 has 4 bytes, not 8.": lambda n: cache_lines(n, 8),
                "A line counts when its first number is read, so a row of 100 numbers is in 7 "
                "lines, not in 6.": lambda n: (cache_lines(n)[0], n // 16),
                "16 is the number of float32 in a line. How many lines has a row?": lambda n: (
                    cache_lines(n)[0],
                    16,
                ),
                "This takes each number of a column for a line of its own. If rows are short, "
                "several of them share a line.": lambda n: (n, cache_lines(n)[1]),
                "This is for all passes of the innermost loop together. Only one is asked for.": (
                    lambda n: tuple(n * each for each in cache_lines(n))
                ),
            },
        ),
        2: Exercise(
            steps(STEPS),
            trials=[("k", 672), ("j", 672), ("i", 672), ("i", 5)],
            slips={
                "These are the steps of matrices that are stored by columns.": steps(BY_COLUMNS),
                "The steps are asked for in numbers, and these are in bytes.": steps(STEPS, unit=4),
                "A matrix that does not depend on the innermost index stays where it is: its step "
                "is 0.": steps({"k": ("1", "n", "1"), "j": ("1", "1", "1"), "i": ("n", "1", "n")}),
                "From a row to the next it is n numbers, not n².": steps(STEPS, power=2),
                "A and B are exchanged: the steps are those of A[i, k], B[k, j] and C[i, j], in "
                "this order.": steps({key: (b, a, c) for key, (a, b, c) in STEPS.items()}),
                "Every index is taken for the second one of its matrix. If the first index grows, "
                "it is a whole row to the next number.": steps(
                    {"k": ("1", "1", "0"), "j": ("0", "1", "1"), "i": ("1", "0", "1")}
                ),
                "C moves as well, if its first index is the innermost.": steps(
                    STEPS | {"i": ("n", "0", "0")}
                ),
            },
        ),
        3: Exercise(
            tiles(),
            observe=pairs,
            slips={
                "The registers for the row of B and the number of A are missing: r v + v + 1 must "
                "fit.": tiles(row=0, number=0),
                "The register for the number of A is missing.": tiles(number=0),
                "The registers for the row of B are missing: there are v of them.": tiles(row=0),
                "Some of these tiles have too few sums: while one addition takes 4 cycles, 2 are "
                "started in each of them.": tiles(sums=1),
                "Exactly as many sums as are needed are enough.": tiles(sums=9),
                "Some of these tiles do more loads than multiply-adds.": tiles(loads=False),
                "This is one of them, and there are more.": [(6, 2)],
                "A pair is (r, v): first the rows, then the vectors.": [(v, r) for r, v in tiles()],
                "More sums than needed do no harm, as long as there are registers: tiles with more "
                "than 8 sums are busy too.": [(r, v) for r, v in tiles() if r * v == 8],
            },
        ),
        4: Exercise(
            panels,
            trials=[
                (np.arange(1.0, 11).reshape(5, 2), 2),
                (np.arange(1.0, 13).reshape(4, 3), 2),
                (np.arange(1.0, 13).reshape(3, 4), 4),
            ],
            slips={
                "The last rows are missing, where the height does not divide the number of rows.": (
                    lambda A, height: panels(A[: len(A) // height * height], height)
                ),
                "The zeros belong below the matrix, in the last panel.": padded_above,
                "There is one panel too many, of zeros only, if the height divides the number of "
                "rows.": always_padded,
                "The shape is right, but the numbers are in the order of the rows: a panel has all "
                "its rows for k = 0 first.": by_lines,
                "Each panel is stored by rows, (panels, height, k): the last two axes have to be "
                "exchanged.": lambda A, height: panels(A, height).swapaxes(1, 2),
                "A panel has rows that are neighbours, and not every second or third row of the "
                "matrix.": interleaved,
                "These are the panels of columns, as B has them: A is cut along its rows.": (
                    lambda A, height: panels(A.T, height)
                ),
            },
        ),
        5: Exercise(
            per_byte,
            trials=[(512, 1024, 8), (512, 1024, 1024), (1, 4096, 4096)],
            slips={
                "This is half of it. Each multiplication comes with an addition, and a float32 has "
                "4 bytes, not 8.": lambda m, k, n: per_byte(m, k, n) / 2,
                "This is for each number, and a float32 has 4 bytes.": lambda m, k, n: (
                    4 * per_byte(m, k, n)
                ),
                "The result has to be written, too.": lambda m, k, n: (
                    2 * m * k * n / (4 * (m * k + k * n))
                ),
                "The second matrix has to be read, too.": lambda m, k, n: (
                    2 * m * k * n / (4 * (m * k + m * n))
                ),
                "The first matrix has to be read, too.": lambda m, k, n: (
                    2 * m * k * n / (4 * (k * n + m * n))
                ),
                "These are bytes for each operation: the other way up.": lambda m, k, n: (
                    1 / per_byte(m, k, n)
                ),
            },
        ),
    }
)
