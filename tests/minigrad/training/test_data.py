"""Tables, splits, standardisation and batches."""

import csv
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from numpy.testing import assert_allclose

import minigrad
from minigrad.data import Standardizer, batches, read_csv, train_test_split


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def table(tmp_path):
    """Write a CSV file and read it."""

    def write_and_read(content, target="y"):
        path = tmp_path / "table.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_csv(path, target)

    return write_and_read


# ----------------------------------------------------------------------------------------------
# CSV
# ----------------------------------------------------------------------------------------------


def test_a_csv_becomes_features_and_a_target(table):
    t = table("a,y,b\n1,10,2\n-3.5,20,4e-1\n")
    assert t.x.tolist() == [[1, 2], [-3.5, pytest.approx(0.4, rel=1e-7)]]
    assert t.y.tolist() == [[10], [20]]
    assert (t.x.dtype, t.y.dtype) == (np.float32, np.float32)
    assert (t.features, t.target) == (("a", "b"), "y")


@pytest.mark.parametrize("target", ["a", "b", "c"])
def test_any_column_can_be_the_target(table, target):
    t = table("a,b,c\n1,2,3\n4,5,6\n", target)
    at = "abc".index(target)
    assert t.y.tolist() == [[1 + at], [4 + at]]
    assert t.features == tuple(n for n in "abc" if n != target)
    assert t.x[0].tolist() == [v for v in (1, 2, 3) if v != 1 + at]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfy,a\n1,2\n",  # a byte order mark, as Excel writes it
        b"y,a\r\n1,2\r\n",
        b"y,a\n1,2",  # no newline at the end
        b"y,a\n\n1,2\n\n\n",
        b" y , a\n 1 , 2 \n",
        b'"y","a"\n"1","2"\n',
    ],
)
def test_the_usual_dialects_are_read(table, content):
    t = table(content)
    assert (t.x.tolist(), t.y.tolist(), t.features) == ([[2]], [[1]], ("a",))


def test_names_with_commas_and_accents_are_read(table):
    assert table('"größe, cm",y\n1,2\n').features == ("größe, cm",)


@hypothesis.given(
    st.lists(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2
        ),
        min_size=1,
        max_size=5,
    )
)
@hypothesis.settings(max_examples=30)
def test_what_the_csv_module_wrote_is_read_to_the_bit(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["a", "y"], *rows])
    t = read_csv(path, "y")
    assert np.hstack([t.x, t.y]).tobytes() == np.array(rows, np.float32).tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,y\n1,2\nnan,3\n", "line 3, column 'a': 'nan' is not finite"),
        ("a,y\n1,2\n1,-inf\n", "line 3, column 'y': '-inf' is not finite"),
        ("a,y\n1,2\n\n1,\n", "line 4, column 'y': the value is missing"),
        ("a,y\n  ,2\n", "line 2, column 'a': the value is missing"),
        ("a,y\n1,2\n3,4\nred,3\n", "line 4, column 'a': 'red' is not a number"),
        ("a,y\n1,NA\n", "line 2, column 'y': 'NA' is not a number"),
        ('a,y\n"1,5",2\n', "line 2, column 'a': '1,5' is not a number"),
        ("a,y\n1,2\n1\n", "line 3: 1 values for 2 columns"),
        ("a,y\n1,2,3\n", "line 2: 3 values for 2 columns"),
        ('"a\nb",y\nred,2\n', "line 3, column 'a\\nb': 'red' is not a number"),
    ],
)
def test_a_wrong_value_is_an_error_with_its_line_and_column(table, content, message):
    with pytest.raises(ValueError, match=re.escape(f"table.csv, {message}")):
        table(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("a,y\n", "there are no rows below the header"),
        ("a,y\n\n\n", "there are no rows below the header"),
        ("a,b\n1,2\n", "there is no column 'y'; the columns are ['a', 'b']"),
        ("a;y\n1;2\n", "there is no column 'y'; the columns are ['a;y']"),
        ("y\n1\n", "there is no column besides the target 'y'"),
        ("a,y,a\n1,2,3\n", "a column name occurs twice"),
        ("a,y, a\n1,2,3\n", "a column name occurs twice"),
    ],
)
def test_a_table_that_cannot_be_used_is_an_error(table, content, message):
    with pytest.raises(ValueError, match=re.escape(f"table.csv: {message}")):
        table(content)


def test_the_error_for_a_name_that_occurs_twice_names_it(table):
    with pytest.raises(ValueError, match="'b'"):
        table("a,b,y,b\n1,2,3,4\n")


@pytest.mark.parametrize("text", ["1e39", "-4e38", "1" + 50 * "0"])
def test_a_number_beyond_float32_is_an_error(table, text):
    with pytest.raises(ValueError, match=r"line 2, column 'a'.*not finite in float32"):
        table(f"a,y\n{text},1\n")


def test_the_largest_float32_is_a_number_as_numpy_shows_it(table):
    largest = np.finfo(np.float32).max
    assert table(f"a,y\n{largest!s},1\n").x[0, 0] == largest


def test_numbers_with_underscores_are_text(table):
    with pytest.raises(ValueError, match="'1_000' is not a number"):
        table("a,y\n1_000,1\n")


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_file_that_is_not_utf8_is_an_error(table, encoding):
    with pytest.raises(ValueError, match=r"table\.csv: the file is not UTF-8") as caught:
        table("größe,y\n1,2\n".encode(encoding))
    assert not isinstance(caught.value, UnicodeDecodeError)


def test_a_field_that_the_csv_module_does_not_read_is_an_error(table):
    with pytest.raises(ValueError, match=r"table\.csv, line 3: .*larger than field limit") as error:
        table(f"a,y\n1,2\n{'1' * 140_000},3\n")
    assert not isinstance(error.value, csv.Error)


def test_a_message_about_a_long_text_is_short(table):
    for content in (f"a,y\n{'x' * 100_000},1\n", f"{'x' * 100_000},b\n1,2\n"):
        with pytest.raises(ValueError, match=r"line 2|no column") as error:
            table(content)
        assert len(str(error.value)) < 2000


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        read_csv(tmp_path / "none.csv", "y")


# ----------------------------------------------------------------------------------------------
# Splits
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("test_size", "n_test"), [(0.25, 25), (0.5, 50), (0.994, 99), (0.01, 1)])
def test_a_split_has_every_row_once_and_keeps_rows_together(rng, test_size, n_test):
    x = np.arange(200.0).reshape(100, 2)
    y = x[:, 0] * 10
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=test_size, rng=rng)
    assert (len(x_train), len(x_test)) == (100 - n_test, n_test)
    assert sorted([*x_train[:, 0], *x_test[:, 0]]) == x[:, 0].tolist()
    assert np.array_equal(y_train, x_train[:, 0] * 10)
    assert np.array_equal(y_test, x_test[:, 0] * 10)


def test_a_split_is_random_and_repeats_with_its_generator():
    x = np.arange(100)
    first, again, other = (
        train_test_split(x, rng=np.random.default_rng(seed))[1].tolist() for seed in (1, 1, 2)
    )
    assert first == again != other
    assert first != sorted(first)


def test_a_split_follows_manual_seed():
    minigrad.manual_seed(3)
    first = train_test_split(np.arange(50))[0]
    minigrad.manual_seed(3)
    assert np.array_equal(train_test_split(np.arange(50))[0], first)


def test_a_split_takes_lists_and_tensors():
    train, test, *_ = train_test_split([1, 2, 3, 4], minigrad.ones((4, 2)))
    assert sorted([*train, *test]) == [1, 2, 3, 4]


@pytest.mark.parametrize("test_size", [0.001, 0.999])
def test_a_split_with_an_empty_part_is_an_error(test_size):
    with pytest.raises(ValueError, match=f"test_size={test_size} of 100 rows leaves a part empty"):
        train_test_split(np.arange(100), test_size=test_size)


@pytest.mark.parametrize("test_size", [0, 1, 1.5, 20, -0.5, float("nan")])
def test_the_size_of_a_test_is_a_share(test_size):
    with pytest.raises(ValueError, match=f"share of the rows, between 0 and 1, not {test_size}"):
        train_test_split(np.arange(100), test_size=test_size)


def test_a_split_of_unequal_lengths_or_of_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"different numbers of rows: \[3, 4\]"):
        train_test_split(np.ones(4), np.ones(3))
    with pytest.raises(ValueError, match="empty"):
        train_test_split(np.ones((0, 2)))
    with pytest.raises(ValueError, match="axis of rows"):
        train_test_split(np.array(1.0))
    with pytest.raises(ValueError, match=r"no arrays|at least one"):
        train_test_split()


# ----------------------------------------------------------------------------------------------
# Standardisation
# ----------------------------------------------------------------------------------------------


def test_columns_get_mean_zero_and_deviation_one(rng):
    x = rng.standard_normal((500, 3)) * [1e-6, 1, 1e6] + [5, -1e3, 1e7]
    z = Standardizer.fit(x).transform(x)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-8)
    np.testing.assert_allclose(z.std(axis=0), 1, rtol=1e-8)


def test_the_statistics_are_those_of_the_rows_it_was_fitted_on():
    scaler = Standardizer.fit(np.array([[0.0], [2.0]]))
    assert scaler.transform(np.array([[1.0], [3.0], [5.0]])).tolist() == [[0], [2], [4]]


def test_inverse_undoes_transform(rng):
    x = rng.standard_normal((20, 3)) * 7 + 3
    x[:, 1] = 4.0
    scaler = Standardizer.fit(x)
    np.testing.assert_allclose(scaler.inverse(scaler.transform(x)), x, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e7, 1e-30])
def test_a_constant_column_is_left_at_zero(dtype, value):
    x = np.full((1000, 1), value, dtype)
    scaler = Standardizer.fit(x)
    assert (scaler.transform(x) == 0).all()
    assert scaler.scale == 1


def test_float32_stays_float32(rng):
    x = rng.standard_normal((10, 2)).astype(np.float32)
    scaler = Standardizer.fit(x)
    assert scaler.transform(x).dtype == scaler.inverse(x).dtype == np.float32


def test_float32_far_from_zero_is_standardised_in_double_precision(rng):
    x = (rng.standard_normal((100_000, 2)) + 3000).astype(np.float32)
    scaler, wide = Standardizer.fit(x), x.astype(np.float64)
    np.testing.assert_allclose(scaler.mean, wide.mean(axis=0), rtol=1e-7)
    np.testing.assert_allclose(scaler.scale, wide.std(axis=0), rtol=1e-6)


def test_integers_and_tensors_can_be_standardised():
    scaler = Standardizer.fit(minigrad.tensor([[0], [2], [4], [6]]))
    assert scaler.mean == 3
    np.testing.assert_allclose(scaler.transform([[3], [4]]), [[0], [1 / np.sqrt(5)]], rtol=1e-15)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_cannot_be_standardised(value):
    with pytest.raises(ValueError, match="not finite"):
        Standardizer.fit(np.array([[1.0], [value]]))


def test_values_whose_deviation_overflows_cannot_be_standardised():
    with pytest.raises(ValueError, match="overflow in float64"):
        Standardizer.fit(np.array([[1e308, 0.0], [-1e308, 1.0]]))


def test_nothing_cannot_be_standardised():
    with pytest.raises(ValueError, match="no rows"):
        Standardizer.fit(np.ones((0, 2)))
    with pytest.raises(ValueError, match="rows"):
        Standardizer.fit(np.array(1.0))


# ----------------------------------------------------------------------------------------------
# Batches
# ----------------------------------------------------------------------------------------------


@hypothesis.given(st.integers(1, 30), st.integers(1, 40), st.booleans())
@hypothesis.settings(max_examples=50)
def test_batches_have_every_row_once_and_keep_rows_together(n, batch_size, shuffle):
    x, y = np.arange(n), np.arange(n)[:, None] * 10
    parts = list(batches([x, y], batch_size, shuffle=shuffle))
    assert [len(part[0]) for part in parts[:-1]] == [batch_size] * (len(parts) - 1)
    assert 1 <= len(parts[-1][0]) <= batch_size
    rows = np.concatenate([part[0] for part in parts])
    assert sorted(rows) == x.tolist()
    assert np.array_equal(np.concatenate([part[1] for part in parts])[:, 0], rows * 10)


def test_batches_in_order_are_in_order_and_draw_nothing(rng):
    state = rng.bit_generator.state
    parts = [part.tolist() for (part,) in batches([np.arange(5)], 2, shuffle=False, rng=rng)]
    assert parts == [[0, 1], [2, 3], [4]]
    assert rng.bit_generator.state == state


def test_shuffled_batches_differ_by_epoch_and_repeat_with_the_generator():
    def epochs(seed):
        rng = np.random.default_rng(seed)
        return [[p.tolist() for (p,) in batches([np.arange(20)], 7, rng=rng)] for _ in range(2)]

    assert epochs(1) == epochs(1)
    assert epochs(1) != epochs(2)
    assert epochs(1)[0] != epochs(1)[1]


def test_batches_are_copies():
    x = np.arange(4)
    for (part,) in batches([x], 2, shuffle=False):
        part[...] = 9
    assert x.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True, "2", None])
def test_batch_size_must_be_a_positive_integer(batch_size):
    with pytest.raises((ValueError, TypeError), match="batch_size must be"):
        next(batches([np.arange(3)], batch_size))


def test_batch_size_may_be_an_integer_of_numpy():
    assert len(list(batches([np.arange(5)], np.int64(2)))) == 3


def test_batches_take_lists():
    (parts,) = batches([[1, 2], ([0.5], [1.5])], 2, shuffle=False)
    assert [part.tolist() for part in parts] == [[1, 2], [[0.5], [1.5]]]


def test_batches_take_rows_by_position_of_what_is_indexed_by_label():
    class Series:
        """A column of a table whose rows have been sorted: row i has another place than i."""

        ndim = 1

        def __array__(self, dtype=None, copy=None):
            return np.array([30.0, 10.0, 20.0])

        def __len__(self):
            return 3

        def __getitem__(self, labels):
            return np.array([10.0, 20.0, 30.0])[labels]

    x = np.array([3.0, 1.0, 2.0])
    for rows, column in batches([x, Series()], 2):
        assert (column == 10 * rows).all()


def test_batches_of_unequal_lengths_or_of_nothing_are_an_error():
    with pytest.raises(ValueError, match=r"different numbers of rows: \[3, 4\]"):
        next(batches([np.ones(4), np.ones(3)], 2))
    with pytest.raises(ValueError, match="empty"):
        next(batches([np.ones((0, 2))], 2))


@pytest.mark.parametrize("make", [np.asarray, minigrad.tensor])
def test_one_array_is_no_list_of_arrays(make):
    with pytest.raises(TypeError, match=r"list of arrays, not one of shape \(3, 10\)"):
        next(batches(make(np.ones((3, 10))), 2))


@pytest.mark.parametrize("arrays", [{"x": np.ones(4)}, "xy", 3, None])
def test_what_is_no_list_of_arrays_is_refused(arrays):
    with pytest.raises(TypeError, match="batches takes a list of arrays, not "):
        next(batches(arrays, 2))


def test_numbers_are_no_arrays_of_rows():
    with pytest.raises(ValueError, match="a single number has none"):
        next(batches([1.0, 2.0], 1))


def test_the_order_of_batches_is_shuffled_or_not():
    with pytest.raises(TypeError, match="shuffle must be True or False, not 'no'"):
        next(batches([np.ones(4)], 2, shuffle="no"))


@pytest.mark.parametrize("shape", [(4, 1), (4, 3), (1,), (3,), (4, 2, 2), ()])
def test_other_columns_than_those_of_the_fit_are_refused(shape):
    standardizer = Standardizer.fit(np.arange(8.0).reshape(4, 2))
    for method in (standardizer.transform, standardizer.inverse):
        with pytest.raises(ValueError, match=r"a row has the shape \(2,\)"):
            method(np.ones(shape))
    assert standardizer.transform(np.ones(2)).shape == (2,)


def test_a_fit_without_columns_has_one_mean_for_arrays_of_any_shape():
    standardizer = Standardizer.fit(np.array([1.0, 3.0]))
    for x in (2.0, np.full(3, 2.0), np.full((2, 3), 2.0)):
        assert not standardizer.transform(x).any()
        assert np.array_equal(standardizer.inverse(np.zeros(np.shape(x))), x)


def test_standardisation_of_few_digits_is_computed_with_all():
    tiny, large = np.float16([[0], [6e-8], [0]]), np.float16([[6e4], [-6e4], [-6e4]])
    for x in (tiny, large):
        z = Standardizer.fit(x).transform(x)
        assert z.dtype == np.float16
        assert_allclose(z.mean(), 0, atol=1e-3)  # half a unit in the last digit
        assert_allclose(abs(z).max(), 2**0.5, rtol=1e-3)
        assert_allclose(Standardizer.fit(x).inverse(z), x, rtol=1e-3, atol=6e-8)
    far = np.float32(1e6) + np.random.default_rng(0).standard_normal((1000, 1), np.float32)
    standardised = Standardizer.fit(far).transform(far)
    assert standardised.dtype == np.float32
    assert abs(standardised.mean(dtype=np.float64)) < 1e-6


def test_integers_of_8_bits_are_sizes_of_batches_too():
    sizes = [len(x) for (x,) in batches([np.zeros(300)], np.uint8(200), shuffle=False)]
    assert sizes == [200, 100]


def test_a_share_may_be_float16():
    parts = train_test_split(np.zeros(100_000), test_size=np.float16(0.25))
    assert [len(part) for part in parts] == [75_000, 25_000]
    with pytest.raises(TypeError, match="test_size must be a number, not 'a'"):
        train_test_split(np.zeros(4), test_size="a")
    with pytest.raises(TypeError, match=r"test_size must be a number, not '0\.25'"):
        train_test_split(np.zeros(4), test_size="0.25")


def test_a_deviation_of_a_standardizer_is_never_0():
    assert Standardizer.fit([[1e-50], [2e-50]]).scale == pytest.approx(5e-51)
    with pytest.raises(ValueError, match="underflow to 0"):
        Standardizer.fit(np.array([[1e-200], [2e-200]]))
