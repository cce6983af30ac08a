"""StandardScaler by itself: numbers, kinds of X, and what is refused."""

import copy
import pickle
import sys
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas
import pytest

import fastbn
from fastbn import StandardScaler
from tests import reference
from tests.subprocess_tools import run


def expected(x, axis=-1):
    """Mean, variance and scaled x, of the textbook."""
    mean, var = reference.mean_and_var(x, axis)
    ones = np.ones(mean.size)
    return mean, var, reference.normalize(x, mean, var, ones, 0 * ones, 0.0, axis)


#: Largest errors of a scaled value, whose size is about 1.
CLOSE = {np.float64: 1e-13, np.float32: 2e-6, np.float16: 4e-3}


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("layout", ["C", "F", "strided", "reversed"])
def test_scales_to_mean_0_and_variance_1(dtype, layout, rng):
    x = rng.normal(3, 2, (60, 8)).astype(dtype)
    x = {"C": x, "F": np.asfortranarray(x), "strided": x[::2, ::2], "reversed": x[:, ::-1]}[layout]
    before, scaler = x.copy(), StandardScaler()
    y = scaler.fit_transform(x)
    mean, var, scaled = expected(x)
    assert (y.dtype, y.shape, y.strides) == (x.dtype, x.shape, np.empty_like(x).strides)
    np.testing.assert_allclose(y.astype(float), scaled.astype(float), atol=CLOSE[dtype])
    np.testing.assert_array_equal(scaler.transform(x), y)
    np.testing.assert_array_equal(x, before)
    loose = 1e-12 if dtype is np.float64 else 1e-5
    for attribute, right in (
        (scaler.mean_, mean), (scaler.var_, var), (scaler.scale_, np.sqrt(var))
    ):  # fmt: skip
        assert attribute.dtype == np.float64
        np.testing.assert_allclose(attribute, right.astype(float), rtol=loose)
    assert (scaler.n_samples_seen_, scaler.n_features_in_) == (len(x), x.shape[1])
    back = scaler.inverse_transform(y)
    assert back.dtype == dtype
    np.testing.assert_allclose(back.astype(float), x.astype(float), atol=8 * CLOSE[dtype])


@pytest.mark.parametrize(
    ("shape", "axis"), [((5, 3, 4, 6), 1), ((5, 4, 6, 3), -1), ((3, 20), 0), ((4, 5, 3), 2)]
)
def test_axis_says_where_the_features_are(shape, axis, rng):
    x = rng.normal(2, 3, shape).astype(np.float32)
    scaler = StandardScaler(axis=axis).fit(x)
    mean, var, scaled = expected(x, axis)
    np.testing.assert_allclose(scaler.transform(x), scaled.astype(float), atol=2e-6)
    np.testing.assert_allclose(scaler.var_, var.astype(float), rtol=1e-5)
    assert scaler.n_samples_seen_ == x.size // 3
    np.testing.assert_allclose(scaler.inverse_transform(scaler.transform(x)), x, atol=2e-6)
    batches = StandardScaler(axis=axis)
    for part in np.array_split(x, 2, axis=0 if axis else 1):
        batches.partial_fit(part)
    np.testing.assert_allclose(batches.mean_, mean.astype(float), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("with_mean", [True, False])
@pytest.mark.parametrize("with_std", [True, False])
def test_either_step_can_be_left_out(with_mean, with_std, rng):
    x = rng.normal(3, 2, (50, 4))
    scaler = StandardScaler(with_mean=with_mean, with_std=with_std)
    y = scaler.fit_transform(x)
    right = (x - x.mean(0) * with_mean) / (x.std(0) if with_std else 1)
    np.testing.assert_allclose(y, right, atol=1e-13)
    np.testing.assert_allclose(scaler.inverse_transform(y), x, atol=1e-13)
    assert (scaler.scale_ is None, scaler.var_ is None) == (not with_std, not with_std)
    assert (scaler.mean_ is None) == (not with_mean and not with_std)


def test_a_step_that_was_not_fitted_is_an_error(rng):
    x = rng.normal(size=(5, 2))
    scaler = StandardScaler(with_std=False).fit(x).set_params(with_std=True)
    with pytest.raises(ValueError, match="scale_ is None"):
        scaler.transform(x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cuts", [[1], [7, 8, 400], range(10, 500, 10)])
def test_parts_one_after_the_other_are_the_whole(dtype, cuts, rng):
    x = rng.normal(50, 2, (500, 6)).astype(dtype)
    whole, parts = StandardScaler().fit(x), StandardScaler()
    for part in np.split(x, list(cuts)):
        assert parts.partial_fit(part) is parts
    loose = 1e-13 if dtype is np.float64 else 1e-6
    for name in ("mean_", "var_", "scale_"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=loose)
    assert parts.n_samples_seen_ == 500
    parts.fit(x[:10])  # begins anew
    assert parts.n_samples_seen_ == 10


def test_a_feature_that_is_constant_has_scale_1(rng):
    x = rng.normal(size=(1000, 3))
    x[:, 1], x[:, 2] = 0.1, 1e8 + 1e-9 * x[:, 2]
    for dtype, weights in product((np.float64, np.float32), (None, rng.uniform(size=1000))):
        scaler = StandardScaler().fit(x.astype(dtype), sample_weight=weights)
        assert list(scaler.scale_[1:]) == [1, 1]
        assert scaler.scale_[0] != 1
        assert (scaler.transform(x.astype(dtype))[:, 1] == 0).all()


def test_tiny_and_huge_values_keep_their_digits(rng):
    for size in (1e-140, 1e-30, 1e30, 1e140):
        x = size * rng.normal(1, 1, (100, 2))
        _, _, scaled = expected(x)
        np.testing.assert_allclose(StandardScaler().fit_transform(x), scaled.astype(float), 1e-11)
    x = (1e-30 * rng.normal(1, 1, (100, 2))).astype(np.float32)
    _, _, scaled = expected(x)
    y = StandardScaler().fit_transform(x)
    np.testing.assert_allclose(y, scaled.astype(float), atol=2e-6)


def test_a_variance_beyond_float64_is_an_error():
    with pytest.raises(ValueError, match="feature 1 is too large"):
        StandardScaler().fit(np.array([[1.0, 1e200], [2.0, -1e200]]))


# --- what is missing, infinite or weighted --------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_nan_is_left_out_and_kept(dtype, weighted, rng):
    x = rng.normal(3, 2, (40, 3)).astype(dtype)
    x[5:9, 1], x[:, 2] = np.nan, np.nan
    weights = rng.uniform(0, 2, 40) if weighted else np.ones(40)
    scaler = StandardScaler().fit(x, sample_weight=weights if weighted else None)
    there = ~np.isnan(x)
    for k in (0, 1):
        values, of = x[there[:, k], k].astype(float), weights[there[:, k]]
        mean = np.average(values, weights=of)
        np.testing.assert_allclose(scaler.mean_[k], mean, rtol=1e-6)
        right = np.average((values - mean) ** 2, weights=of)
        np.testing.assert_allclose(scaler.var_[k], right, rtol=1e-5)
    np.testing.assert_allclose(scaler.n_samples_seen_, weights @ there)
    assert np.isnan([scaler.mean_[2], scaler.var_[2], scaler.scale_[2]]).all()
    y = scaler.transform(x)
    np.testing.assert_array_equal(np.isnan(y), ~there)
    np.testing.assert_array_equal(np.isnan(scaler.inverse_transform(y)), ~there)
    scaler.partial_fit(np.ones((1, 3), dtype))  # the first value of the third feature
    assert scaler.mean_[2] == 1


def test_equal_counts_are_one_number_also_with_nan():
    scaler = StandardScaler().fit(np.array([[1.0, np.nan], [np.nan, 2.0]]))
    assert scaler.n_samples_seen_ == 1
    assert isinstance(scaler.n_samples_seen_, int)
    scaler.partial_fit(np.array([[1.0, np.nan]]))
    np.testing.assert_array_equal(scaler.n_samples_seen_, [2, 1])


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_infinity_is_refused_and_nothing_changed(value, dtype, rng):
    good = rng.normal(size=(6, 3)).astype(dtype)
    x = good.copy()
    x[2, 1], x[3, 1] = value, np.nan
    scaler = StandardScaler(copy=False).fit(good)
    before, same = pickle.dumps(scaler), x.copy()
    for call in (
        scaler.fit, scaler.partial_fit, scaler.transform, scaler.fit_transform,
        scaler.inverse_transform,
    ):  # fmt: skip
        with pytest.raises(ValueError, match="infinity in feature 1"):
            call(x)
    assert pickle.dumps(scaler) == before
    np.testing.assert_array_equal(x, same)


@pytest.mark.parametrize(("shape", "axis"), [((400, 3), -1), ((40, 3, 2, 5), 1)])
def test_a_weight_is_how_often_a_sample_counts(shape, axis, rng):
    x, times = rng.normal(1e4, 2, shape), rng.integers(0, 4, shape[0])
    weighted = StandardScaler(axis=axis).fit(x, sample_weight=times)
    repeated = np.repeat(x, times, axis=0)
    mean, var, _ = expected(repeated, axis)
    np.testing.assert_allclose(weighted.mean_, mean.astype(float), rtol=1e-13)
    np.testing.assert_allclose(weighted.var_, var.astype(float), rtol=1e-11)
    assert weighted.n_samples_seen_ == repeated.size // 3
    assert isinstance(weighted.n_samples_seen_, float)
    parts = StandardScaler(axis=axis).partial_fit(x[:9], sample_weight=times[:9])
    parts.partial_fit(x[9:], sample_weight=list(times[9:]))
    np.testing.assert_allclose(parts.var_, weighted.var_, rtol=1e-11)
    np.testing.assert_allclose(
        StandardScaler(axis=axis).fit(x, sample_weight=2).var_,
        StandardScaler(axis=axis).fit(x).var_, rtol=1e-9,
    )  # fmt: skip


def test_weights_of_many_blocks(rng, monkeypatch):
    x, weights = rng.normal(5, 2, (100, 3)), rng.uniform(size=100)
    at_once = StandardScaler().fit(x, sample_weight=weights)
    monkeypatch.setattr("fastbn._estimator.passes.BLOCK", 30)
    in_blocks = StandardScaler().fit(x, sample_weight=weights)
    np.testing.assert_allclose(in_blocks.mean_, at_once.mean_, rtol=1e-14)
    np.testing.assert_allclose(in_blocks.var_, at_once.var_, rtol=1e-13)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("weight", [0.0, 1e-80])
def test_rows_of_no_weight_cost_no_digits(weight, first, rng):
    """Such as those with a value that marks what is missing."""
    x, weights = rng.normal(5, 2, (30, 3)), rng.uniform(0.5, 1, 30)
    row = 0 if first else 7
    x[row], weights[row] = [1e36, np.nan, -1e30], weight
    x[1, 2] = x[9, 0] = np.nan
    scaler = StandardScaler().fit(x, sample_weight=weights)
    for c in range(3):
        there = ~np.isnan(x[:, c])
        there[row] = False
        values, each = x[there, c].astype(np.longdouble), weights[there].astype(np.longdouble)
        mean = (values * each).sum() / each.sum()
        var = ((values - mean) ** 2 * each).sum() / each.sum()
        np.testing.assert_allclose(scaler.mean_[c], float(mean), rtol=1e-13)
        np.testing.assert_allclose(scaler.var_[c], float(var), rtol=1e-6 if weight else 1e-12)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(4), r"shape \(4,\), expected \(5,\)"),
        (np.ones((5, 1)), r"shape \(5, 1\)"),
        ([1, 1, 1, 1, np.nan], "finite"),
        ([1, 1, 1, 1, -1], "not negative"),
        (np.zeros(5), "other than zero"),
    ],
)
def test_impossible_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        StandardScaler().fit(np.ones((5, 2)), sample_weight=weights)


def test_weights_need_samples_first():
    with pytest.raises(ValueError, match="samples on the first axis"):
        StandardScaler(axis=0).fit(np.ones((5, 2)), sample_weight=np.ones(2))


# --- X --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "i8", "?", ">f8", ">f4", "g"])
def test_numbers_of_other_kinds(dtype, rng):
    x = (rng.integers(0, 100, (30, 3)) // (50 if dtype == "?" else 1)).astype(dtype)
    y = StandardScaler().fit_transform(x)
    assert y.dtype == (np.float32 if dtype == ">f4" else np.float64)
    _, _, scaled = expected(x.astype(float))
    np.testing.assert_allclose(y, scaled.astype(float), atol=2e-6 if dtype == ">f4" else 1e-13)


def test_what_numpy_converts():
    for x in ([[1, 2], [3, 6]], [["1", "2"], ["3", "6"]], np.array([[1, 2], [3, 6]], object)):
        np.testing.assert_array_equal(StandardScaler().fit_transform(x), [[-1, -1], [1, 1]])


def test_bfloat16_stays():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="the dtype comes from it")
    x = np.array([[1, np.nan], [3, 6]], ml_dtypes.bfloat16)
    scaler = StandardScaler()
    y = scaler.fit_transform(x)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y.astype(float), [[-1, np.nan], [1, 0]])
    x[1, 1] = np.inf
    with pytest.raises(ValueError, match="infinity in feature 1"):
        scaler.transform(x)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.ma.masked_array(np.ones((3, 2)), mask=np.eye(3, 2)), TypeError, r"X.filled\(np.nan\)"),
        (np.ones((3, 2), complex), ValueError, "Complex data not supported"),
        (np.ones((3, 2), "M8[D]"), ValueError, "dtype datetime64"),
        ([["a", "b"]], ValueError, "could not convert"),
        (np.ones(3), ValueError, "Reshape your data"),
        (np.empty((0, 3)), ValueError, r"0 sample\(s\)"),
        (np.empty((3, 0)), ValueError, r"0 feature\(s\)"),
    ],
)
def test_what_is_refused(x, error, message):
    fitted = StandardScaler().fit(np.eye(3, 2))
    for call in (StandardScaler().fit, fitted.partial_fit, fitted.transform):
        with pytest.raises(error, match=message):
            call(x)
    assert fitted.n_samples_seen_ == 3


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"with_mean": 1}, TypeError, "with_mean must be True or False"),
        ({"with_std": "no"}, TypeError, "with_std must be True or False"),
        ({"copy": None}, TypeError, "copy must be True or False"),
        ({"axis": 1.5}, TypeError, "axis must be an integer"),
        ({"axis": 2}, ValueError, "axis 2 is out of bounds"),
    ],
)
def test_impossible_parameters_are_found_by_fit(parameters, error, message):
    with pytest.raises(error, match=message):
        StandardScaler(**parameters).fit(np.ones((3, 2)))


def test_copy_false_writes_over_x(rng):
    x = rng.normal(size=(20, 3)).astype(np.float32)
    right, given = StandardScaler().fit_transform(x), x.copy()
    scaler = StandardScaler(copy=False)
    assert scaler.fit_transform(x) is x
    np.testing.assert_array_equal(x, right)
    assert scaler.inverse_transform(x) is x
    np.testing.assert_allclose(x, given, atol=1e-6)
    assert scaler.transform(x, copy=True) is not x
    assert StandardScaler().fit(given).transform(given, copy=False) is given


def test_copy_false_copies_what_cannot_be_written(rng):
    x = rng.normal(size=(20, 3))
    right, scaler = StandardScaler().fit_transform(x), StandardScaler(copy=False)
    read_only, swapped, same = x.copy(), x.astype(">f8"), np.broadcast_to(x[:1], (4, 3))
    read_only.flags.writeable = False
    for given in (read_only, swapped):
        np.testing.assert_allclose(scaler.fit_transform(given), right, rtol=1e-13)
        np.testing.assert_array_equal(given, x)
    assert scaler.fit_transform(np.lib.stride_tricks.as_strided(same, same.shape)).shape == (4, 3)
    np.testing.assert_array_equal(same[0], x[0])
    whole = np.array([[1, 2], [3, 6]])
    scaler.fit_transform(whole)
    np.testing.assert_array_equal(whole, [[1, 2], [3, 6]])


# --- names, parameters, state ---------------------------------------------------------------------


def test_names_of_a_data_frame(rng):
    frame = pandas.DataFrame(rng.normal(size=(9, 2)), columns=["a", "b"])
    scaler = StandardScaler().fit(frame)
    assert list(scaler.feature_names_in_) == list(scaler.get_feature_names_out()) == ["a", "b"]
    scaler.transform(frame)
    with pytest.raises(ValueError, match="same order"):
        scaler.transform(frame[["b", "a"]])
    with pytest.raises(ValueError, match=r"unseen at fit time:\n- c\n.*now missing:\n- b\n"):
        scaler.transform(frame.rename(columns={"b": "c"}))
    with pytest.warns(UserWarning, match="does not have valid feature names") as warned:
        scaler.transform(frame.to_numpy())
    assert warned[0].filename == __file__
    with pytest.raises(ValueError, match="not equal to feature_names_in_"):
        scaler.get_feature_names_out(["b", "a"])
    scaler.fit(frame.to_numpy())
    assert not hasattr(scaler, "feature_names_in_")
    with pytest.warns(UserWarning, match="fitted without feature names"):
        scaler.transform(frame)
    assert list(scaler.get_feature_names_out()) == ["x0", "x1"]
    assert list(scaler.get_feature_names_out(["p", "q"])) == ["p", "q"]
    with pytest.raises(ValueError, match="equal to number of features"):
        scaler.get_feature_names_out(["p"])
    with pytest.raises(TypeError, match="must all be strings"):
        StandardScaler().fit(frame.rename(columns={"b": 1}))
    assert not hasattr(StandardScaler().fit(frame.set_axis([0, 1], axis=1)), "feature_names_in_")


def test_missing_values_of_pandas_are_nan():
    frame = pandas.DataFrame({"a": pandas.array([1, None, 3], "Int64"), "b": [1.0, 2.0, 4.0]})
    y = StandardScaler().fit_transform(frame)
    np.testing.assert_array_equal(y[:, 0], [-1, np.nan, 1])


def test_another_number_of_features(rng):
    scaler = StandardScaler().fit(rng.normal(size=(5, 3)))
    for call in (scaler.transform, scaler.inverse_transform, scaler.partial_fit):
        with pytest.raises(ValueError, match="X has 2 features, but StandardScaler is expecting 3"):
            call(np.ones((5, 2)))


def test_parameters_by_name():
    scaler = StandardScaler(with_std=False, axis=1)
    assert scaler.get_params() == {"axis": 1, "copy": True, "with_mean": True, "with_std": False}
    assert scaler.set_params(axis=-1, copy=False) is scaler
    assert repr(scaler) == "StandardScaler(copy=False, with_std=False)"
    assert repr(StandardScaler()) == "StandardScaler()"
    with pytest.raises(ValueError, match=r"'with_var' for estimator .*with_std'\]"):
        scaler.set_params(axis=1, with_var=True)
    assert scaler.axis == -1
    with pytest.raises(TypeError):
        StandardScaler(True)


def test_before_fit():
    scaler = StandardScaler()
    for call in (scaler.transform, scaler.inverse_transform):
        with pytest.raises(ValueError, match="not fitted yet"):
            call(np.ones((3, 2)))
    with pytest.raises(AttributeError, match="not fitted yet"):
        scaler.get_feature_names_out()


def test_attributes_that_somebody_has_set_count(rng):
    scaler, x = StandardScaler(), rng.normal(size=(5, 3)).astype(np.float32)
    scaler.mean_, scaler.scale_ = [1, 2, 3], np.array([2, 2, 2])
    np.testing.assert_allclose(scaler.transform(x), (x - [1, 2, 3]) / 2, rtol=1e-5)
    with pytest.raises(ValueError, match="X has 2 features"):
        scaler.transform(x[:, :2])


def test_copies_and_pickles_are_the_same_and_apart(rng):
    x = rng.normal(size=(30, 3))
    x[0, 0] = np.nan
    scaler = StandardScaler().fit(x)
    for other in (copy.deepcopy(scaler), pickle.loads(pickle.dumps(scaler))):
        np.testing.assert_array_equal(other.transform(x), scaler.transform(x))
        other.partial_fit(x + 1)
        assert other.n_samples_seen_[1] == 60
    assert scaler.n_samples_seen_[1] == 30


def test_data_frames_come_out_where_they_are_wished(rng, monkeypatch):
    frame = pandas.DataFrame(rng.normal(size=(4, 2)), columns=["a", "b"], index=list("wxyz"))
    scaler = StandardScaler()
    assert scaler.set_output(transform="pandas") is scaler
    out = scaler.fit_transform(frame)
    assert isinstance(out, pandas.DataFrame)
    assert (list(out.columns), list(out.index)) == (["a", "b"], list("wxyz"))
    np.testing.assert_array_equal(scaler.transform(frame), out)
    scaler.set_output(transform=None)
    array = StandardScaler().set_output(transform="pandas").fit_transform(frame.to_numpy())
    assert (list(array.columns), list(array.index)) == (["x0", "x1"], [0, 1, 2, 3])
    assert isinstance(scaler.inverse_transform(out), np.ndarray)
    assert type(scaler.set_output(transform="default").transform(frame)) is np.ndarray
    with pytest.raises(ValueError, match="one of default, pandas, polars"):
        scaler.set_output(transform="arrow")
    images = StandardScaler(axis=1).set_output(transform="pandas").fit(np.ones((2, 3, 4)))
    with pytest.raises(ValueError, match="a DataFrame has two dimensions"):
        images.transform(np.ones((2, 3, 4)))
    polars = SimpleNamespace(DataFrame=lambda y, **how: how)  # what it would be called with
    monkeypatch.setitem(sys.modules, "polars", polars)
    how = scaler.set_output(transform="polars").transform(frame)
    assert how == {"schema": ["a", "b"], "orient": "row"}
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ImportError, match="pip install polars"):
        scaler.set_output(transform="polars").transform(frame)


@pytest.mark.compiled
def test_scikit_learn_is_not_imported():
    code = """
import sys, numpy as np, fastbn
scaler = fastbn.StandardScaler()
try:
    scaler.transform(np.ones((3, 2)))
except ValueError as error:
    print(type(error).__name__)
scaler.inverse_transform(scaler.fit_transform(np.eye(3)))
print(repr(scaler), scaler.get_feature_names_out()[0])
print({"sklearn", "pandas"} & set(sys.modules))
"""
    assert run(code).split() == ["NotFittedError", "StandardScaler()", "x0", "set()"]


def test_any_number_of_threads_gives_the_same_bits(rng):
    x, found = rng.normal(1e3, 1, (20_000, 40)).astype(np.float32), []
    before = fastbn.get_num_threads()
    try:
        for threads in (1, 2):
            fastbn.set_num_threads(threads)
            found.append(StandardScaler().fit_transform(x))
    finally:
        fastbn.set_num_threads(before)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("size", [1e-155, 1e-3, 1e5, 1e150])
def test_what_is_scaled_comes_back(size):
    x = np.random.default_rng(5).normal(size=(50, 3)) * size
    scaler = fastbn.StandardScaler().fit(x)
    back = scaler.inverse_transform(scaler.transform(x))
    np.testing.assert_allclose(back, x, rtol=1e-12, atol=1e-15 * size)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [("f8", 1e-200), ("f8", 1e200), ("f8", 1e-308), ("f8", 4e-320), ("f8", 1e305), ("f8", -2.0),
     ("f4", 1e-40), ("f4", 1e-200), ("f4", 1e38), ("f4", 1e25), ("f4", 1e-25), ("f4", -2.0),
     ("f2", 1e-7), ("f2", 1e4)],
)  # fmt: skip
def test_any_scale(dtype, scale, axis, in_place):
    """Squares of them, and some of what they are divided by, are beyond the range of float64."""
    size = (
        abs(scale)
        if dtype == "f8"
        else np.clip(abs(scale), *{"f4": (1e-44, 1e37), "f2": (1e-7, 5e3)}[dtype])
    )
    x = (np.random.default_rng(5).normal(size=(50, 3)) * size).astype(dtype)
    scaler = StandardScaler(axis=axis, copy=not in_place)
    mean = x.astype("f8").mean(1 - axis)
    mean[1] = np.nan
    scaler.mean_, scaler.scale_ = mean, np.full(mean.size, scale)
    at = (lambda v: v) if axis else (lambda v: v[:, None])
    with np.errstate(all="ignore"):
        right = ((x.astype("g") - at(mean)) / at(scaler.scale_)).astype(dtype)
    y = scaler.transform(x.copy())
    assert y.dtype == x.dtype
    tolerance = {
        "rtol": 4 * np.finfo(dtype).eps,
        "atol": 2 * float(np.finfo(dtype).smallest_subnormal),
    }
    np.testing.assert_allclose(y, right, **tolerance)
    y = np.random.default_rng(6).normal(size=x.shape).astype(dtype)
    with np.errstate(all="ignore"):
        back = (y.astype("g") * at(scaler.scale_) + at(mean)).astype(dtype)
    tolerance["atol"] += float(2 * np.finfo(dtype).eps * np.nanmax(abs(mean)))
    np.testing.assert_allclose(scaler.inverse_transform(y), back, **tolerance)
