"""Names of arrays in nested dictionaries."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

#: Keys of dictionaries that people save a state dict in.
_AROUND = {
    "model", "state_dict", "model_state_dict", "model_state", "net", "network", "module",
}  # fmt: skip
#: What wrappers put before each name: torch's DataParallel and torch.compile.
_BEFORE = ("module.", "_orig_mod.")
_MAX_DEPTH, _MAX_ENTRIES = 64, 1_000_000


def flatten(tree: Any, leaf: Callable[[str, Any], bool]) -> dict[str, Any]:
    """Leaves of nested dictionaries and lists by name, in their order.

    A name is made of the keys on the way, with dots between them. Left off are dictionaries
    around a state dict (`_AROUND`), and what wrappers put before each name (`_BEFORE`): unless
    two leaves would have the same name then, where all keep everything.
    """
    leaves: list[tuple[tuple[str, ...], Any]] = []
    _collect(tree, (), leaf, leaves, [0])
    paths = [path for path, _ in leaves]
    short = _shortened(paths)
    if len(set(short)) < len(short):
        short = [".".join(path) for path in paths]
    if len(set(short)) < len(short):
        twice = next(name for k, name in enumerate(short) if name in short[:k])
        raise ValueError(f"two arrays have the name {twice!r}")
    return dict(zip(short, (value for _, value in leaves), strict=True))


def _collect(
    tree: Any, path: tuple[str, ...], leaf: Callable[[str, Any], bool],
    leaves: list[tuple[tuple[str, ...], Any]], seen: list[int],
) -> None:  # fmt: skip
    seen[0] += 1
    if len(path) > _MAX_DEPTH or seen[0] > _MAX_ENTRIES:
        raise ValueError(
            f"has containers nested more than {_MAX_DEPTH} deep or more than {_MAX_ENTRIES:,} "
            "entries; does one contain itself?"
        )
    if leaf(path[-1] if path else "", tree):
        leaves.append((path, tree))
    elif isinstance(tree, Mapping):
        for key in tree:
            _collect(tree[key], (*path, str(key)), leaf, leaves, seen)
    elif type(tree) in (list, tuple):
        for k, value in enumerate(tree):
            _collect(value, (*path, str(k)), leaf, leaves, seen)


def _shortened(paths: Iterable[tuple[str, ...]]) -> list[str]:
    inside = []
    for path in paths:
        start = 0
        while start < len(path) - 1 and path[start] in _AROUND:
            start += 1
        inside.append(path[start:])
    groups: dict[tuple[str, ...], list[str]] = {}
    for path in inside:
        groups.setdefault(path[:-1], []).append(path[-1] if path else "")
    cut = {group: _wrapper_of(names) for group, names in groups.items()}
    return [
        ".".join((*path[:-1], path[-1].removeprefix(cut[path[:-1]]))) if path else ""
        for path in inside
    ]


def _wrapper_of(names: list[str]) -> str:
    """What stands before each of the names; those without a dot are the wrapper's own."""
    found, names = "", [name for name in names if "." in name]
    while names:
        for before in _BEFORE:
            if all(name.startswith(found + before) for name in names):
                found += before
                break
        else:
            break
    return found


def shortenings(name: str) -> list[str]:
    """A name, and what is left of it without wrappers."""
    found = [name]
    while found[-1].startswith(_BEFORE):
        found.append(found[-1].partition(".")[2])
    return found
