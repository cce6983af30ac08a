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
from fastbn.kernels.rows.sums import ROW_SUMS_BYTES

#: Each task of gradients has sums of columns. So there are few tasks, of many values;
GRADIENT_TASKS, GRADIENT_TASK = 32, 65536
#: and where rows are long, only four, if the sums of more would take more bytes than this.
SUMS_BYTES = 4 * 1024 * 1024


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
        # half of the cache: what is written row by row has to be read first, unless it is streamed
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
            most = min(GRADIENT_TASKS, max(4, SUMS_BYTES // (2 * columns * (8 + value_bytes))))
            task = -(-max(-(-GRADIENT_TASK // length), -(-rows // most)) // 4) * 4
        else:
            task = max(1, TASK // length)
        tasks = -(-rows // task)
        sizes = {"rows_left": 8 * tasks, "row_sums": ROW_SUMS_BYTES * tasks}
        if of_gradient:
            both = 2 * columns * tasks  # of weight and bias
            sizes |= {"column_sums": both * value_bytes, "wide_column_sums": both * 8}
        places, end = plan.laid_out(sizes)
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
