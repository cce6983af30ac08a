"""Names of layers below a prefix."""

from collections.abc import Iterable

from fastbn.checkpoint.contents import Norm

_SEPARATORS = "./"


def below(name: str, prefix: str) -> str | None:
    """What a layer is called below a prefix; None if its name does not begin with it.

    Whole modules are left off, and the dot behind the last of them: of ``layer1.0.bn`` both
    ``layer1`` and ``layer1.`` leave ``0.bn``. A prefix that ends within a word leaves the word, so
    that two layers do not get one name: of ``layer10.0.bn`` the prefix ``layer1`` leaves all.
    """
    if not name.startswith(prefix):
        return None
    end = len(prefix)
    if end == 0 or prefix[-1] in _SEPARATORS:
        return name[end:]
    if name[end:].startswith(tuple(_SEPARATORS)):
        return name[end + 1 :]
    return name[max(map(prefix.rfind, _SEPARATORS)) + 1 :]


def named(norms: Iterable[Norm], prefix: str) -> dict[str, Norm]:
    """Norms whose names begin with a prefix, by their names below it; ValueError for one twice."""
    found: dict[str, Norm] = {}
    for norm in norms:
        name = below(norm.name, prefix)
        if name in found:
            raise ValueError(
                f"{found[name].name!r} and {norm.name!r} are both called {name!r} below "
                f"prefix={prefix!r}; let it end in a dot"
            )
        if name is not None:
            found[name] = norm
    return found
