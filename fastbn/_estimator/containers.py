"""Results as DataFrames, where `set_output` or scikit-learn's configuration wishes it."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

KINDS = "default", "pandas", "polars"


def check(kind: Any) -> None:
    """Refuse what is no container."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"transform must be one of {', '.join(KINDS)} or None, got {kind!r}")


def sklearn_setting(name: str, default: Any) -> Any:
    """What scikit-learn is configured to, if it is loaded: nobody can have set it otherwise."""
    sklearn = sys.modules.get("sklearn")
    return default if sklearn is None else sklearn.get_config().get(name, default)


def wrapped(y: np.ndarray, x: Any, chosen: str | None, names: Callable[[], np.ndarray]) -> Any:
    """``y`` in the container that was chosen, with the rows' index of ``x`` and the names."""
    kind = chosen or sklearn_setting("transform_output", "default")
    if kind == "default":
        return y
    check(kind)
    if y.ndim != 2:
        raise ValueError(
            f"the output has shape {y.shape}, and a DataFrame has two dimensions; "
            "set_output(transform='default') returns arrays"
        )
    if kind == "pandas":
        pandas = _imported("pandas")
        index = x.index if isinstance(x, pandas.DataFrame) else None
        return pandas.DataFrame(y, index=index, columns=names(), copy=False)
    return _imported("polars").DataFrame(y, schema=list(names()), orient="row")


def _imported(library: str) -> Any:
    import importlib

    try:
        return importlib.import_module(library)
    except ImportError:
        raise ImportError(
            f"set_output(transform={library!r}) needs {library}: pip install {library}"
        ) from None
