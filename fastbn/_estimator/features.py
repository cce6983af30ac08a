"""Number and names of features. The messages about names are those that scikit-learn asks for."""

import warnings
from typing import Any

import numpy as np


def names_of(x: Any) -> np.ndarray | None:
    """Names of the columns of a DataFrame, if they are all strings; None of anything else."""
    columns = None if isinstance(x, np.ndarray) else getattr(x, "columns", None)
    if columns is None or callable(columns):
        return None
    texts = sum(isinstance(name, str) for name in columns)
    if texts == 0:
        return None
    if texts < len(columns):
        kinds = sorted({type(name).__name__ for name in columns})
        raise TypeError(
            f"names of features must all be strings, or none of them, got {kinds}; "
            "X.columns = X.columns.astype(str) makes strings of them"
        )
    return np.asarray(columns, dtype=object)


def check_number(came: int, expected: int, of: str) -> None:
    """Refuse another number of features than that of fit."""
    if came != expected:
        raise ValueError(
            f"X has {came} features, but {of} is expecting {expected} features as input"
        )


def check_names(came: np.ndarray | None, fitted: np.ndarray | None, of: str) -> None:
    """Refuse other names than those of fit, and warn where one of the two has none."""
    if came is None or fitted is None:
        if came is not None:
            _warn(f"X has feature names, but {of} was fitted without feature names")
        elif fitted is not None:
            _warn(f"X does not have valid feature names, but {of} was fitted with feature names")
        return
    if came.shape == fitted.shape and (came == fitted).all():
        return
    unseen, missing = sorted(set(came) - set(fitted)), sorted(set(fitted) - set(came))
    message = "The feature names should match those that were passed during fit.\n"
    for head, names in (
        ("Feature names unseen at fit time:\n", unseen),
        ("Feature names seen at fit time, yet now missing:\n", missing),
    ):
        if names:
            message += head + "".join(f"- {name}\n" for name in names[:5])
            message += "- ...\n" if len(names) > 5 else ""
    if not unseen and not missing:
        message += "Feature names must be in the same order as they were in fit.\n"
    raise ValueError(message)


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=6)  # of who calls the method


def names_out(given: Any, fitted: np.ndarray | None, number: int) -> np.ndarray:
    """Names of what comes out, one for each feature that goes in."""
    if given is None:
        plain = np.array([f"x{k}" for k in range(number)], dtype=object)
        return plain if fitted is None else fitted
    names = np.asarray(given, dtype=object)
    if fitted is not None and not np.array_equal(names, fitted):
        raise ValueError("input_features is not equal to feature_names_in_")
    if names.shape != (number,):
        raise ValueError(
            f"input_features should have length equal to number of features ({number}), got "
            f"{len(names)}"
        )
    return names
