"""What a check says of an answer: each wrong one gets a message that is true and of use."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

import minigrad as mg
from examples.walkthroughs.checking import Checker, Exercise, WrongAnswerError, arguments_of

MATRIX = np.arange(6.0).reshape(2, 3)


def total_of_columns(x):
    return x.sum(axis=0)


def graph_of(answer):
    if not isinstance(answer, mg.Tensor):
        raise WrongAnswerError("A Tensor is expected.")
    return answer.item()  # a ValueError, if there are several elements


check = Checker(
    {
        1: Exercise(
            total_of_columns,
            trials=[(MATRIX,), (np.ones((1, 4)),)],
            slips={
                "This adds up the rows.": lambda x: x.sum(axis=1),
                "This is the mean.": lambda x: x.mean(axis=0),
            },
        ),
        2: Exercise(0.25, slips={"This is the derivative at 1.": 0.1966}, tolerance=1e-3),
        3: Exercise("float64", slips={"Its errors are too large.": "float32"}),
        4: Exercise({"W": (2, 3), "b": 3}, slips={"Transposed.": {"W": (3, 2), "b": 3}}),
        5: Exercise(mg.tensor(3.0), slips={"Doubled.": mg.tensor(6.0)}, observe=graph_of),
        6: Exercise(MATRIX, slips={"Transposed.": MATRIX.T}),
        9: Exercise(
            {"a": "up", "b": "down"},
            choices=("up", "down"),
            slips={"Exchanged.": {"a": "down", "b": "up"}},
        ),
        7: Exercise(lambda x: [x, np.inf, np.nan], trials=[(2.0,)], slips={}),
        8: Exercise(["one"], slips={}),
    }
)


def first_row_only(x):
    out = total_of_columns(x)
    out[1:] += 1
    return out


RIGHT = [
    (1, total_of_columns),
    (1, lambda x: total_of_columns(x).astype(np.float32)),
    (1, lambda x: mg.tensor(x).sum(axis=0)),
    (1, lambda x: list(total_of_columns(x))),
    (2, 0.2500001),
    (2, mg.tensor(0.25)),
    (2, Fraction(1, 4)),
    (2, Decimal("0.25")),
    (3, " Float64 "),
    (4, {"b": 3, "W": [2, 3]}),
    (5, mg.tensor(3.0)),
    (6, MATRIX.tolist()),
    (6, [[mg.tensor(x) for x in row] for row in MATRIX]),
    (7, lambda x: (x, np.inf, np.nan)),
    (7, lambda x: np.array([x, np.inf, np.nan])),
]
OPEN = [
    (1, ...),
    (1, lambda x: ...),
    (1, lambda x: (x, ...)),
    (2, ...),
    (4, {"W": (2, 3), "b": ...}),
    (4, {"W": (2, ...), "b": 3}),
    (5, ...),
    (6, [[0, 1, 2], [3, ..., 5]]),
]
WRONG = [
    (1, lambda x: x.sum(axis=1), "This adds up the rows."),
    (1, lambda x: x.mean(axis=0), "This is the mean."),
    (1, 3, "A function is expected, and this is the number 3."),
    (1, lambda x: None, "Your function returns nothing. Does it end with `return`?"),
    (1, lambda x: x[9], "With x = [[0., 1., 2.], [3., 4., 5.]], your function raises IndexError"),
    (1, lambda a: 2 * a.sum(axis=0), "With a = [[0., 1., 2.], [3., 4., 5.]]: Entry [0] is 6 and"),
    (1, lambda x, axis: 0, "With [[0., 1., 2.], [3., 4., 5.]], your function raises TypeError"),
    (1, np.prod, "An array of shape (3,) is expected, and this is the number 0."),
    (1, lambda: 1, "your function raises TypeError"),
    (1, lambda x: x, "An array of shape (3,) is expected, and this is an array of shape (2, 3)."),
    (1, first_row_only, "Entry [1] is 6 and should be 5 (2 of 3 entries are wrong)."),
    (
        1,
        lambda x: np.array(["2026-11-29"], "M8[D]"),
        "is an array of shape (1,) and dtype datetime",
    ),
    (1, lambda x: "sum", "An array of shape (3,) is expected, and this is the text 'sum'."),
    (1, lambda x: [1, [2]], "An array of shape (3,) is expected, and this is a list of 2 values."),
    (2, 0.5, "The number is wrong: 0.5."),
    (2, [0.25], "A number is expected, and this is a list of 1 value."),
    (2, 1 + 2j, "A number is expected, and this is (1+2j), which is not a real number."),
    pytest.param(2, 10**400, "and this is a number beyond the largest float.", id="10**400"),
    (2, None, "A number is expected, and this is None."),
    (2, {0.25}, "A number is expected, and this is an object of the type set."),
    (2, 0.1966, "This is the derivative at 1."),
    (3, "float16", "'float16' is not the answer."),
    (3, 64, "A text is expected, and this is the number 64."),
    (4, {"W": (2, 3)}, "A dict with the keys 'W', 'b' is expected, and this is a dict with"),
    (4, {"W": (2, 4), "b": 3}, "'W': Value 2 of 2: The number is wrong: 4."),
    (4, {"W": (2,), "b": 3}, "'W': 2 values are expected, and this is a tuple of 1 value."),
    (4, {"W": MATRIX.T, "b": 3}, "2 values are expected, and this is an array of shape (3, 2)."),
    (5, 3.0, "A Tensor is expected."),
    (5, mg.tensor(4.0), "The number is wrong: 4."),
    (5, mg.tensor([3.0, 3.0]), "Trying your answer raises ValueError: "),
    (6, MATRIX + 1, "Entry [0, 0] is wrong (6 of 6 entries are wrong): 1."),
    (6, MATRIX.T, "Transposed."),
    (6, [0, 1, None], "An array of shape (2, 3) is expected, and this is a list of 3 values."),
    (6, 1j * MATRIX, "and this is an array of shape (2, 3) and dtype complex128."),
    (8, "one", "1 value is expected, and this is the text 'one'."),
    (9, {"a": "up", "b": "left"}, "'b': 'left' is none of the words 'up', 'down'."),
    (9, {"a": "up", "b": 3}, "'b': 3 is none of the words 'up', 'down'."),
    (9, {"a": "Down ", "b": "up"}, "Exchanged."),
    (7, lambda x: (x, 1.0, np.nan), "Value 2 of 3: The number is 1 and should be inf."),
]


@pytest.mark.parametrize(("number", "answer"), RIGHT)
def test_right_answers_in_any_form(number, answer):
    verdict = check(number, answer)
    assert verdict, verdict
    assert repr(verdict) == f"Exercise {number}: right."


def test_an_array_of_bfloat16_is_an_array_of_numbers():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="needs the `text` extra")
    assert check(6, MATRIX.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize(("number", "answer"), OPEN)
def test_an_answer_that_is_missing_is_not_wrong(number, answer):
    verdict = check(number, answer)
    assert not verdict
    assert repr(verdict) == f"Exercise {number}: not answered yet."


@pytest.mark.parametrize(("number", "answer", "message"), WRONG)
def test_wrong_answers_and_what_is_said(number, answer, message):
    verdict = check(number, answer)
    assert not verdict
    assert verdict.state == "not yet"
    assert any(part in verdict.message for part in message.split("|")), verdict.message


class UnreadableTensor:
    """An object that refuses to become an array, as a tensor of PyTorch with a graph does."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("call detach() first")


def test_what_refuses_to_become_an_array_is_a_wrong_answer():
    message = "An array of shape (2, 3) is expected, and this is an object of the type"
    assert check(6, UnreadableTensor()).message.startswith(message)


def test_the_value_that_is_right_is_not_given_away():
    assert "0.25" not in check(2, 0.3).message
    assert "float64" not in check(3, "int").message


def test_a_function_that_changes_its_arguments_changes_only_copies():
    def clear(x):
        x[:] = 0
        return x.sum(axis=0)

    assert not check(1, clear)
    assert check(1, total_of_columns)


class Model:
    """An object that shows its address."""


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        (total_of_columns, "total_of_columns"),
        (np.exp, "exp"),
        (Model(), "an object of the type Model"),
        (np.array([2, 0]), "[2, 0]"),
        (np.array([[0.5], [1.0]]), "[[0.5], [1. ]]"),
        (mg.tensor([1.5]), "[1.5]"),
        (MATRIX[:, :2].repeat(2), "an array of shape (8,)"),
        ([], "[]"),
    ],
)
def test_an_argument_is_named_without_an_address_and_in_one_line(argument, text):
    assert arguments_of((argument, 3)) == f"{text}, 3"


def test_an_unknown_number_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match=r"there is no exercise 99 here; there are: 1, 2, 3, 4"):
        check(99, 1)


def test_a_verdict_is_shown_in_a_notebook_without_code_of_the_answer():
    html = check(3, "<script>")._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
