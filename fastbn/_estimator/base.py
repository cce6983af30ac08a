"""The manners of an estimator: parameters by name, repr, tags."""

from __future__ import annotations

import inspect
import sys
from typing import Any, TypeVar

from fastbn._estimator import containers

Self = TypeVar("Self", bound="Estimator")


class NotFittedError(ValueError, AttributeError):
    """Raised for an estimator that has not been fitted, where scikit-learn's class is not there."""


class Estimator:
    """Parameters are the arguments of the constructor, kept under their names and not checked.

    So copies with other parameters can be made by name, which is how scikit-learn clones.
    """

    _sklearn_output_config: dict[str, str]  # so called because clone copies what has this name

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        """Parameters in alphabetical order, with their defaults."""
        parameters = inspect.signature(cls).parameters.values()
        return {p.name: p.default for p in sorted(parameters, key=lambda p: p.name)}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name. ``deep`` changes nothing: none of them is an estimator."""
        return {name: getattr(self, name) for name in self._defaults()}

    def set_params(self: Self, **params: Any) -> Self:
        """Set parameters by name; they count from the next call on.

        Raises
        ------
        ValueError
            If there is no such parameter; then none is set.
        """
        known = list(self._defaults())
        for name in params:
            if name not in known:
                raise ValueError(
                    f"Invalid parameter {name!r} for estimator {self}. Valid parameters are: "
                    f"{known!r}."
                )
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def set_output(self: Self, *, transform: str | None = None) -> Self:
        """Choose what `transform` returns.

        Parameters
        ----------
        transform : "default", "pandas", "polars" or None
            An array, or a DataFrame with the names of the features; None changes nothing. Where
            nothing is chosen, scikit-learn's ``set_config(transform_output=...)`` holds.

        Raises
        ------
        ValueError
            If it is another word.
        """
        if transform is not None:
            containers.check(transform)
            self._sklearn_output_config = {"transform": transform}
        return self

    def __repr__(self) -> str:
        changed = (
            f"{name}={getattr(self, name)!r}"
            for name, default in self._defaults().items()
            if getattr(self, name) is not default and repr(getattr(self, name)) != repr(default)
        )
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_is_fitted__(self) -> bool:
        return any(name.endswith("_") and not name.startswith("_") for name in vars(self))

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            loaded = sys.modules.get("sklearn.exceptions")
            error = NotFittedError if loaded is None else loaded.NotFittedError
            raise error(f"this {type(self).__name__} is not fitted yet; call fit(X) first")

    def __sklearn_tags__(self) -> Any:
        """Say to scikit-learn, which alone calls this, what goes in and comes out."""
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=["float64", "float32", "float16"]),
            input_tags=InputTags(allow_nan=True),
        )
