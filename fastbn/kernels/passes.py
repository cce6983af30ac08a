"""All steps of an operation: reduce, merge, finish, apply. The only code that starts threads.

The same for every layout, dtype and operation: which parts run stands in the frame, and a step
without a part is left out. *All channels at once*: each pass goes over all channels before the
next, in the order of memory, so that a thread finds in its own cache what it has summed. *Tile by
tile*: some channels go through all steps while they are in cache, each tile on one thread.

How work is cut follows from shape and strides alone, and segments are merged in order: whichever
thread takes which task, the bits of the result are the same.
"""

from fastbn.kernels.compile import inlined, inner, part
from fastbn.kernels.frame import MISSING
from fastbn.kernels.simd import call, call_loop, copy_of, frame_at


@inlined
def run_tasks(f, frame, address, tasks):
    """Run a part on some tasks: in order, or on threads if the frame has a loop for them."""
    if f.loop == 0 or tasks < 2:
        for task in range(tasks):
            call(address, frame, task)
    else:
        call_loop(f.loop, address, frame, tasks)


@inlined
def lay_out(f):
    """Give each step's memory its place in the tile's part of ``scratch``."""
    f.partial += f.scratch
    f.marks += f.scratch
    f.sums += f.scratch
    f.parameters += f.scratch
    f.table += f.scratch
    f.wide_table += f.scratch
    f.row_sums += f.scratch
    f.column_sums += f.scratch
    f.wide_column_sums += f.scratch
    f.rows_left += f.scratch


@inner
def all_steps(frame):
    """Reduce, merge, finish, apply. Or write nothing: the outcome is that a wide part is needed."""
    f = frame_at(frame)
    lay_out(f)
    if f.reduce != 0:
        run_tasks(f, frame, f.reduce, f.reduce_tasks)
        call(f.merge, frame, 0)
        if f.marked > 0:
            if f.wide_reduce == 0:
                f.outcome = MISSING
                return
            run_tasks(f, frame, f.wide_reduce, f.reduce_tasks)
            call(f.merge, frame, 1)
    if f.finish != 0:
        f.marked = 0
        call(f.finish, frame, 0)
        apply = f.apply
        if f.marked > 0 and apply != 0:
            if f.wide_apply == 0 or f.wide_finish == 0:
                f.outcome = MISSING
                return
            call(f.wide_finish, frame, 0)
            apply = f.wide_apply
        if apply != 0:
            run_tasks(f, frame, apply, f.apply_tasks)


@part("all_channels")
def all_channels(frame, task, like):
    """All steps, over all channels."""
    all_steps(frame)


@part("each_tile")
def each_tile(frame, tile, like):
    """All steps over the channels of one tile."""
    own = copy_of(frame)
    f = frame_at(own)
    lo = tile * f.tile
    f.channels = min(f.tile, f.all_channels - lo)
    f.columns = f.channels
    f.terms = f.channels * max(1, f.per_group)
    f.first_group = lo
    f.first += lo * f.first_channel * f.item_bytes
    f.second += lo * f.second_channel * f.item_bytes
    f.third += lo * f.third_channel * f.item_bytes
    f.out += lo * f.out_channel * f.item_bytes
    f.statistics += 8 * lo
    f.mean += 8 * lo
    f.var += 8 * lo
    if f.weight != 0 and f.per_group == 0:  # those of groups are found by their number
        f.weight += lo * f.weight_bytes
    if f.bias != 0 and f.per_group == 0:
        f.bias += lo * f.weight_bytes
    f.d_weight += lo * f.value_bytes
    f.d_bias += lo * f.value_bytes
    f.scratch += tile * f.tile_bytes
    f.groups = (f.channels + f.group - 1) // f.group
    f.reduce_tasks = f.segments * f.groups
    f.apply_tasks = (f.rows * f.channels * f.length + f.task_size - 1) // f.task_size
    f.loop = 0
    all_steps(own)
    if f.outcome != 0:
        frame_at(frame).outcome = f.outcome


@part("tile_by_tile")
def tile_by_tile(frame, task, like):
    """All steps, of one tile after the other or of several on threads."""
    f = frame_at(frame)
    run_tasks(f, frame, f.each_tile, f.tiles)
