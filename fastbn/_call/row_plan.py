"""How tables are walked whose rows have statistics of their own: layer norm and RMS norm."""

from functools import lru_cache

import numpy as np

from fastbn._call import plan
from fastbn._call.plan import KEPT, STREAM_VALUES, VECTOR_BYTES
from fastbn._system import processor
from fastbn.kernels import entries, parts
from fastbn.kernels.channels_first.cut import TASK
from fastbn.kernels.compile import Entry
from fastbn.kernels.frame import new_frame
from fastbn.kernels.held import computed
from fastbn.kernels.loops import ALIGN

#: Of gradients, whose tasks have sums of columns: how many tasks at most, values of each at least,
#: and bytes of all sums, if there are more than four tasks.
GRADIENT_TASKS, GRADIENT_TASK, SUMS_BYTES = 32, 65536, 4 * 1024 * 1024


class RowPlan:
    """What one operation does on the rows of a table; as `plan.Plan`."""

    __slots__ = (
        "_aligned", "_frames", "_operation", "_sizes", "dtype", "entry", "extents", "large",
        "steps", "streaming",
    )  # fmt: skip

    def __init__(
        self, operation: str, dtype: np.dtype, rows: int, length: int, steps: tuple[int, ...]
    ) -> None:
        self._operation, self.dtype = parts.OPERATIONS[operation], dtype
        self.entry: Entry = getattr(entries, self._operation.entries[0])
        self._sizes, self.steps = (rows, length), steps
        self.extents = [(rows - 1) * step + length for step in steps]
        self._frames: dict[tuple[int, bool], np.ndarray] = {}
        nbytes = rows * length * dtype.itemsize
        self.large = nbytes >= plan.PARALLEL_BYTES
        fits = nbytes * len(steps) <= processor.last_level_cache() // 2
        self._aligned = steps[-1] * dtype.itemsize % VECTOR_BYTES == 0
        self.streaming = not fits and self._aligned

    def streams_to(self, out: np.ndarray) -> bool:
        """Whether it is worth it to store past the caches: not where short rows share lines."""
        return self.streaming and (
            self._sizes[1] >= STREAM_VALUES
            or out.__array_interface__["data"][0] % VECTOR_BYTES == 0
        )

    def frame(self, threads: int, in_place: bool) -> np.ndarray:
        """What the parts are told, on so many threads; parts that it names are compiled.

        ``in_place`` or where else nothing is stored past the caches.
        """
        in_place = in_place and self.streaming
        found = self._frames.get((threads, in_place))
        if found is None:
            found = self._frames[threads, in_place] = self._new_frame(threads > 1, in_place)
        return found

    def _new_frame(self, threads: bool, in_place: bool) -> np.ndarray:
        rows, length = self._sizes
        value_bytes = computed(self.dtype).itemsize
        lanes = VECTOR_BYTES // value_bytes
        columns = (-(-length // lanes) + 1) * lanes  # the last vector may begin anywhere
        of_gradient = "second" in self._operation.arrays
        if of_gradient:
            most = min(GRADIENT_TASKS, max(4, SUMS_BYTES // ((16 + 2 * value_bytes) * columns)))
            task = -(-max(-(-GRADIENT_TASK // length), -(-rows // most)) // 4) * 4
        else:
            task = max(1, TASK // length)
        tasks = -(-rows // task)
        memory = {"marks": 8 * tasks, "sums": 128 * tasks}
        if of_gradient:
            memory |= {
                "partial": 16 * columns * tasks,
                "table": 2 * value_bytes * columns * tasks,
            }
        places, end = {}, 0
        for name, size in memory.items():
            places[name] = end
            end += -(-size // VECTOR_BYTES) * VECTOR_BYTES
        streaming = self.streaming and not in_place
        steps = zip(self._operation.arrays, self.steps, strict=True)
        addresses = parts.addresses(
            self._operation, "first", self.dtype, threads, False,
            streaming, False,
        )  # fmt: skip
        return new_frame(
            **places, **addresses, **{f"{name}_row": step for name, step in steps}, rows=rows,
            length=length, columns=columns, task_size=task, reduce_tasks=tasks, count=length,
            item_bytes=self.dtype.itemsize, value_bytes=value_bytes, scratch_bytes=end,
            aligned=self._aligned and (streaming or length >= ALIGN),
        )  # fmt: skip


@lru_cache(maxsize=KEPT)
def row_plan(
    operation: str, dtype: np.dtype, rows: int, length: int, steps: tuple[int, ...]
) -> RowPlan:
    """The plan for some arrays, whose rows begin ``steps`` values apart."""
    return RowPlan(operation, dtype, rows, length, steps)
