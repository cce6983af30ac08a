"""Where native code is called: a plan's frame, an entry, and on how many threads."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastbn._system import threads
from fastbn.kernels import entries
from fastbn.kernels.frame import MISSING

#: Stands for a parameter that is not there.
ABSENT = {np.dtype(kind): np.empty(0, kind) for kind in (np.float32, np.float64)}


def launch(plan: Any, entry: Callable[..., int], in_place: bool, *args: Any) -> int:
    """Call an entry: on several threads if the arrays are worth it and no other call does.

    Returns the entry's outcome, 0 or `LEFT`. An entry that lacks a part for marked channels can be
    called again: it has not written over its inputs.
    """
    wanted = threads.for_a_call() if plan.large else 1
    outcome = threads.launch(entry, plan.frame, in_place, wanted, args)
    if outcome == entries.NO_MEMORY:
        raise MemoryError("no memory for the statistics of a call; nothing was changed")
    if outcome == MISSING:
        plan.add_wide_parts()
        return launch(plan, entry, in_place, *args)
    return outcome
