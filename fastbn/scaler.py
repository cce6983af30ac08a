"""A scaler for scikit-learn's pipelines: each feature to mean 0 and variance 1."""

from __future__ import annotations  # so that `help` shows types as they are written here

from typing import Any

import numpy as np

from fastbn._call import arguments, settings
from fastbn._estimator import containers, features, passes
from fastbn._estimator.base import Estimator
from fastbn._estimator.table import Table, as_table, as_weights
from fastbn.stats import ChannelStats

__all__ = ["StandardScaler"]


class StandardScaler(Estimator):
    """Scale each feature to mean 0 and variance 1: ``(X - mean_) / scale_``.

    Parameters, methods and attributes are those of scikit-learn's class of this name, and so it
    serves in pipelines, grid searches and column transformers. scikit-learn need not be installed.

    Parameters
    ----------
    copy : bool
        False writes results over X, where X is a writable array of floating-point numbers.
    with_mean, with_std : bool
        Whether to subtract the mean, and to divide by the standard deviation.
    axis : int
        The axis of the features. With 1, images of shape (N, C, H, W) have statistics for each
        channel. Two or more dimensions are taken.

    Attributes
    ----------
    mean_, var_, scale_ : ndarray of float64, shape (n_features_in_,), or None
        ``scale_`` is ``sqrt(var_)``, and 1 for a feature that is constant up to rounding. ``var_``
        and ``scale_`` are None with ``with_std=False``, ``mean_`` is if ``with_mean`` is False too.
    n_samples_seen_ : int, or ndarray of shape (n_features_in_,)
        How many values the statistics of a feature are of, an array where NaN makes the numbers
        differ; of images, ``N * H * W``. With weights, their sum.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Only after X with names, such as a DataFrame.

    Notes
    -----
    NaN is a missing value: `fit` leaves it out, `transform` keeps it. Infinity is refused. float32
    and float16 stay what they are and statistics are taken in float64, or nearly so; integers
    become float64. Sparse matrices are refused.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbn import StandardScaler
    >>> scaler = StandardScaler().fit(np.array([[1.0, 10.0], [3.0, 50.0]]))
    >>> scaler.mean_, scaler.scale_
    (array([ 2., 30.]), array([ 1., 20.]))
    >>> scaler.transform(np.array([[4, 30]]))
    array([[2., 0.]])
    """

    mean_: np.ndarray  # or None, which who has asked for that knows; so are the next two
    var_: np.ndarray
    scale_: np.ndarray
    n_samples_seen_: int | float | np.ndarray
    n_features_in_: int
    feature_names_in_: np.ndarray
    _stats: ChannelStats

    def __init__(
        self, *, copy: bool = True, with_mean: bool = True, with_std: bool = True, axis: int = -1
    ) -> None:
        self.copy = copy
        self.with_mean = with_mean
        self.with_std = with_std
        self.axis = axis

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> StandardScaler:
        """Take mean and variance of each feature.

        Parameters
        ----------
        X : array_like, two or more dimensions, or DataFrame
        y : ignored
        sample_weight : array_like, shape (N,), optional
            How much each sample counts, 0 or more.

        Returns
        -------
        self

        Raises
        ------
        TypeError
            If X is sparse or a masked array.
        ValueError
            If X holds infinity, complex numbers or nothing, or ``sample_weight`` does not fit.
        """
        self._fit(X, sample_weight, first=True)
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> StandardScaler:
        """Take more data into the statistics: they become those of all data so far.

        Arguments and errors are those of `fit`.
        """
        self._fit(X, sample_weight, first=not hasattr(self, "_stats"))
        return self

    def transform(self, X: Any, copy: bool | None = None) -> Any:
        """Scale X with the statistics of `fit`.

        Parameters
        ----------
        X : array_like or DataFrame
            Features as `fit` had them.
        copy : bool, optional
            Instead of the parameter of this name.

        Returns
        -------
        ndarray, or DataFrame if `set_output` says so

        Raises
        ------
        sklearn.exceptions.NotFittedError, or ValueError if scikit-learn is not loaded
            Before `fit`.
        ValueError
            If X has other features, or holds infinity. ``sklearn.set_config(assume_finite=True)``
            saves the pass that looks for it.
        """
        table = self._ready(X, names=True)
        if not containers.sklearn_setting("assume_finite", False):
            passes.check_no_infinity(table.values, table.axis)
        return self._scaled(X, table, copy)

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """`fit`, then `transform` of the same X, which is looked at once less."""
        table = self._fit(X, sample_weight, first=True)
        return self._scaled(X, table, None)

    def inverse_transform(self, X: Any, copy: bool | None = None) -> np.ndarray:
        """Undo `transform`: ``X * scale_ + mean_``. Arguments and errors are the same."""
        table = self._ready(X, names=False)
        passes.check_no_infinity(table.values, table.axis)
        mean, scale = self._terms(table)
        out = table.target(self._copies(copy))
        passes.restored(table.values, mean, scale, table.axis, out)
        return out

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the features that come out: those that went in, else ``x0``, ``x1``, ...

        Raises
        ------
        ValueError
            Before `fit`, or if ``input_features`` are not the names that `fit` saw.
        """
        self._check_fitted()
        fitted = getattr(self, "feature_names_in_", None)
        return features.names_out(input_features, fitted, self.n_features_in_)

    # --- one call ---------------------------------------------------------------------------------

    def _fit(self, x: Any, weights: Any, first: bool) -> Table:
        """Take statistics; everything is checked before anything is kept."""
        with_mean = settings.check_bool("with_mean", self.with_mean)
        with_std = settings.check_bool("with_std", self.with_std)
        self._copies(None)
        names, table = features.names_of(x), as_table(x, self.axis, type(self).__name__)
        number = table.values.shape[table.axis]
        if not first:
            self._check_features(names, number)
        if weights is not None:
            weights = as_weights(weights, table.values, table.axis)
        stats = passes.statistics(table.values, table.axis, weights)
        fractions = weights is not None
        if not first:
            stats = self._stats.merge(stats)
            fractions |= np.asarray(self.n_samples_seen_).dtype.kind == "f"
        passes.check_no_overflow(stats)
        self._keep(stats, with_mean, with_std, fractions)
        self.n_features_in_ = number
        if names is not None:
            self.feature_names_in_ = names
        elif first:
            vars(self).pop("feature_names_in_", None)
        return table

    def _keep(self, stats: ChannelStats, with_mean: bool, with_std: bool, fractions: bool) -> None:
        count = stats.count if fractions else stats.count.astype(np.int64)
        mean, var = np.where(stats.count > 0, stats.mean, np.nan), stats.var()
        self._stats = stats
        self.n_samples_seen_ = count if np.ptp(count) else count[0].item()
        nothing: Any = None
        self.mean_ = mean if with_mean or with_std else nothing
        self.var_ = var if with_std else nothing
        self.scale_ = _scale_of(mean, var, stats.count) if with_std else nothing

    def _ready(self, x: Any, names: bool) -> Table:
        """X of a fitted scaler, checked."""
        self._check_fitted()
        found, table = features.names_of(x), as_table(x, self.axis, type(self).__name__)
        number = table.values.shape[table.axis]
        if hasattr(self, "n_features_in_"):  # not where somebody has set mean_ and scale_ alone
            self._check_features(found, number, names)
        return table

    def _check_features(self, came: np.ndarray | None, number: int, names: bool = True) -> None:
        of = type(self).__name__
        if names:
            features.check_names(came, getattr(self, "feature_names_in_", None), of)
        features.check_number(number, self.n_features_in_, of)

    def _copies(self, copy: bool | None) -> bool:
        return settings.check_bool("copy", self.copy if copy is None else copy)

    def _terms(self, table: Table) -> tuple[np.ndarray | None, np.ndarray | None]:
        """What to subtract and to divide by, as the attributes are now."""
        return (
            self._term("mean_", self.with_mean, table),
            self._term("scale_", self.with_std, table),
        )

    def _term(self, name: str, wanted: bool, table: Table) -> np.ndarray | None:
        if not wanted:
            return None
        value = getattr(self, name)
        if value is None:
            raise ValueError(
                f"{name} is None: the scaler was fitted without it; call fit(X) after set_params"
            )
        value = np.asarray(value)
        features.check_number(table.values.shape[table.axis], value.size, type(self).__name__)
        return arguments.kernel_vector(value.reshape(-1), np.dtype(np.float64))

    def _scaled(self, x: Any, table: Table, copy: bool | None) -> Any:
        mean, scale = self._terms(table)
        out = table.target(self._copies(copy))
        passes.standardized(table.values, mean, scale, table.axis, out)
        chosen = getattr(self, "_sklearn_output_config", {}).get("transform")
        return containers.wrapped(out, x, chosen, self.get_feature_names_out)


def _scale_of(mean: np.ndarray, var: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Standard deviations, and 1 where a variance may be rounding alone.

    The bound is that of Chan, Golub & LeVeque for two passes in float64.
    """
    eps = np.finfo(np.float64).eps
    with np.errstate(over="ignore", invalid="ignore"):
        constant = var <= count * eps * var + (count * mean * eps) ** 2
        return np.where(constant, 1.0, np.sqrt(var))
