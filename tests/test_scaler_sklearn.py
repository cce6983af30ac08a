"""StandardScaler beside scikit-learn's, in its pipelines, and under its checks of estimators."""

import pickle
import warnings

import numpy as np
import pandas
import pytest
import sklearn
from sklearn import preprocessing
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import (
    check_dataframe_column_names_consistency,
    check_global_output_transform_pandas,
    check_n_features_in_after_fitting,
    check_set_output_transform,
    check_set_output_transform_pandas,
    check_transformer_get_feature_names_out,
    check_transformer_get_feature_names_out_pandas,
    estimator_checks_generator,
)
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

from fastbn import StandardScaler
from tests import reference

ATTRIBUTES = "mean_", "var_", "scale_", "n_samples_seen_"


def both(x, y=None, weights=None, **parameters):
    scalers = StandardScaler(**parameters), preprocessing.StandardScaler(**parameters)
    return [scaler.fit(x, y, sample_weight=weights) for scaler in scalers]


# --- scikit-learn's checks ------------------------------------------------------------------------


def checks_of(estimator):
    """Checks, made for each an estimator of its own, and their names."""
    with warnings.catch_warnings():
        # of scikit-learn's classes, which need not be installed
        warnings.filterwarnings("ignore", "Estimator StandardScaler does not inherit")
        for made, check in estimator_checks_generator(estimator):
            yield pytest.param(made, check, id=f"{estimator}-{check.func.__name__}")


@pytest.mark.parametrize(
    ("estimator", "check"),
    [*checks_of(StandardScaler()), *checks_of(StandardScaler(with_mean=False, axis=1))],
)
def test_passes_the_checks_of_scikit_learn(estimator, check):
    """All of them: none is expected to fail."""
    check(estimator)


@pytest.mark.filterwarnings("ignore:X .* feature names:UserWarning")  # X with and without
@pytest.mark.parametrize(
    "check",
    [
        check_dataframe_column_names_consistency,
        check_global_output_transform_pandas,
        check_n_features_in_after_fitting,
        check_set_output_transform,
        check_set_output_transform_pandas,
        check_transformer_get_feature_names_out,
        check_transformer_get_feature_names_out_pandas,
    ],
    ids=lambda check: check.__name__,
)
def test_passes_the_checks_of_scikit_learns_own_estimators(check):
    check("StandardScaler", StandardScaler())


def test_scikit_learn_knows_it_is_fitted():
    with pytest.raises(NotFittedError):
        check_is_fitted(StandardScaler())
    with pytest.raises(NotFittedError):
        StandardScaler().transform(np.ones((3, 2)))
    check_is_fitted(StandardScaler().fit(np.ones((3, 2))))
    assert has_fit_parameter(StandardScaler(), "sample_weight")


# --- the same numbers -----------------------------------------------------------------------------


def kinds(rng):
    x = rng.normal(3, 2, (200, 5))
    missing, constant = x.copy(), x.copy()
    missing[3:60, 1], missing[7, 2] = np.nan, np.nan
    constant[:, 1], constant[:, 2] = 0.1, 1e9
    frame = pandas.DataFrame(x, columns=list("abcde"))
    mixed = frame.astype({"a": "float32"}).assign(c=np.arange(200))
    return {
        "plain": x, "one sample": x[:1], "Fortran": np.asfortranarray(x), "step": x[::3, ::-2],
        "missing": missing, "constant": constant, "integers": (9 * x).astype(np.int64),
        "bool": x > 3, "far": x + 1e4, "frame": frame, "mixed frame": mixed,
        "half": x.astype(np.float16).astype(np.float64),
    }  # fmt: skip


@pytest.mark.parametrize("kind", kinds(np.random.default_rng(0)))
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("steps", [{}, {"with_mean": False}, {"with_std": False}])
def test_float64_agrees(kind, weighted, steps, rng):
    x = kinds(rng)[kind]
    if weighted and kind == "constant":
        x = x[:, [0, 3, 4]]  # of a constant 1e9 its weighted variance is negative, and scale_ NaN
    weights = rng.uniform(0.1, 2, len(x)) if weighted else None
    ours, theirs = both(x, weights=weights, **steps)
    for name in ATTRIBUTES:
        a, b = getattr(ours, name), getattr(theirs, name)
        assert (a is None) == (b is None), name
        if b is not None:
            assert np.shape(a) == np.shape(b), name
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13, err_msg=name)
    y, right = ours.transform(x), theirs.transform(x)
    assert (y.dtype, y.shape) == (right.dtype, right.shape)
    # far from zero the rounding of their mean is left: 1e4 * 1e-16 of a value
    np.testing.assert_allclose(y, right, rtol=1e-12, atol=1e-11 if kind == "far" else 1e-12)
    back = ours.inverse_transform(y)
    np.testing.assert_allclose(back, theirs.inverse_transform(right), rtol=1e-12, atol=1e-12)


def test_float32_far_from_zero_keeps_digits_that_scikit_learn_loses(rng):
    x = rng.normal(1e4, 1, (5000, 8)).astype(np.float32)
    mean, var = reference.mean_and_var(x, 1)
    truth = reference.normalize(x, mean, var, np.ones(8), np.zeros(8), 0.0, 1)
    ours, theirs = (np.abs(s.transform(x) - truth).max() for s in both(x))
    assert ours < 2e-6
    rounds = tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 8)  # the mean to float32
    assert theirs > (100 if rounds else 1) * ours
    loose = np.finfo(np.float32).eps
    for name, right in (("mean_", mean), ("var_", var)):
        np.testing.assert_allclose(getattr(both(x)[0], name), right.astype(float), rtol=loose)


def test_parts_agree(rng):
    x = rng.normal(3, 2, (300, 4))
    x[50:70, 2] = np.nan
    ours, theirs = StandardScaler(), preprocessing.StandardScaler()
    for part in np.array_split(x, 7):
        ours.partial_fit(part)
        theirs.partial_fit(part)
    for name in ATTRIBUTES:
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-12)


@pytest.mark.parametrize("call", ["fit", "transform"])
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinity_is_the_same_error(call, value, rng):
    x = rng.normal(size=(9, 3))
    scalers = both(x)
    x[4, 1] = value
    for scaler in scalers:
        with pytest.raises(ValueError, match="Input X contains infinity"):
            getattr(scaler, call)(x)


def test_assume_finite_saves_the_look_at_x():
    x = np.array([[np.inf, 1.0]])
    scaler = StandardScaler().fit(np.array([[1.0, 1.0], [3.0, 3.0]]))
    with sklearn.config_context(assume_finite=True):
        np.testing.assert_array_equal(scaler.transform(x), [[np.inf, -1.0]])
    with pytest.raises(ValueError, match="infinity"):
        scaler.transform(x)


@pytest.mark.parametrize("kind", ["csr_matrix", "csc_array", "coo_matrix"])
def test_sparse_matrices_are_refused_with_the_way_out(kind):
    import scipy.sparse

    x = getattr(scipy.sparse, kind)(np.eye(3))
    for call in (StandardScaler(with_mean=False).fit, StandardScaler().fit(np.eye(3)).transform):
        with pytest.raises(TypeError, match=r"X is a sparse matrix .*X\.toarray\(\)"):
            call(x)


# --- among other estimators -----------------------------------------------------------------------


@pytest.fixture
def labelled(rng):
    x = rng.normal(5, [1, 10, 100], (120, 3)).astype(np.float32)
    return x, (x[:, 1] > 5).astype(int)


def test_in_a_pipeline(labelled):
    x, y = labelled
    pipe = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    other = make_pipeline(preprocessing.StandardScaler(), LogisticRegression()).fit(x, y)
    assert pipe.score(x, y) > 0.95
    np.testing.assert_allclose(pipe.predict_proba(x), other.predict_proba(x), atol=1e-3)
    assert "StandardScaler()" in repr(pipe)
    assert "StandardScaler" in pipe._repr_html_()
    copies = pickle.loads(pickle.dumps(pipe))
    np.testing.assert_array_equal(copies.predict_proba(x), pipe.predict_proba(x))
    assert list(pipe[:-1].get_feature_names_out()) == ["x0", "x1", "x2"]
    weights = np.linspace(0, 1, len(x))
    pipe.fit(x, y, standardscaler__sample_weight=weights)
    np.testing.assert_allclose(pipe[0].mean_, np.average(x, 0, weights), rtol=1e-6)


def test_clones_are_new_and_take_the_parameters(labelled):
    x, _ = labelled
    scaler = StandardScaler(with_std=False, axis=1).set_output(transform="pandas").fit(x)
    other = clone(scaler)
    assert other.get_params() == scaler.get_params()
    assert not hasattr(other, "mean_")
    assert isinstance(other.fit_transform(x), pandas.DataFrame)


def test_in_a_grid_search(labelled):
    x, y = labelled
    pipe = make_pipeline(StandardScaler(), LogisticRegression())
    search = GridSearchCV(
        pipe, {"standardscaler__with_std": [True, False], "logisticregression__C": [0.1, 1]}, cv=3
    ).fit(x, y)
    assert len(search.cv_results_["params"]) == 4
    assert search.best_score_ > 0.9


def test_in_a_column_transformer(rng):
    frame = pandas.DataFrame(rng.normal(3, 2, (50, 3)), columns=["a", "b", "c"])
    columns = ColumnTransformer([("scaled", StandardScaler(), ["a", "c"])], remainder="passthrough")
    out = columns.set_output(transform="pandas").fit_transform(frame)
    assert list(out.columns) == ["scaled__a", "scaled__c", "remainder__b"]
    np.testing.assert_allclose(out["scaled__c"].std(ddof=0), 1)
    np.testing.assert_array_equal(out["remainder__b"], frame["b"])


def test_the_configuration_of_scikit_learn_holds(rng):
    x = rng.normal(size=(5, 2))
    with sklearn.config_context(transform_output="pandas"):
        assert isinstance(StandardScaler().fit_transform(x), pandas.DataFrame)
        chosen = StandardScaler().set_output(transform="default")
        assert isinstance(chosen.fit_transform(x), np.ndarray)
