"""All steps of an operation: reduce, merge, finish, apply. The only code that starts threads.

The same for every layout, dtype and operation: which parts run stands in the frame, and a step
without a part is left out. *All channels at once*: each pass goes over all channels before the
next, in the order of memory, so that a thread finds in its own cache what it has summed. *Tile by
tile*: some channels go through all steps while they are in cache, each tile on one thread.

How work is cut follows from shape and strides alone, and segments are merged in order: whichever
thread takes which task, the bits of the result are the same.
"""

from fastbn.kernels.compile import inlined, inner, part
from fastbn.kernels.moments import HEADER
from fastbn.kernels.simd import call, call_loop, copy_of, frame_at


@inlined
def run_tasks(f, frame, work, tasks):
    """Run a part on some tasks: in order, or on threads if the frame has a loop for them."""
    if f.loop == 0 or tasks < 2:
        for task in range(tasks):
            call(work, frame, task)
    else:
        call_loop(f.loop, work, frame, tasks)


@inlined
def padded(values):
    """Bytes of some float64, up to the next multiple of a cache line."""
    return (values + 7) // 8 * 64


@inlined
def lay_out(f):
    """Give each step's memory its place in the tile's part of ``scratch``."""
    f.partial = f.scratch
    f.marks = f.partial + padded(f.segments * (HEADER + 3 * f.columns))
    f.sums = f.marks + padded(f.channels)
    f.parameters = f.sums + padded(2 * f.channels)
    f.table = f.parameters + padded(4 * f.channels)
    f.wide_table = f.table + padded(5 * f.terms)


@inner
def all_steps(frame):
    """Reduce, merge, finish, apply. Sets ``missing``, and writes nothing, if a wide part lacks."""
    f = frame_at(frame)
    lay_out(f)
    if f.reduce != 0:
        run_tasks(f, frame, f.reduce, f.reduce_tasks)
        call(f.merge, frame, 0)
        if f.marked > 0:
            if f.wide_reduce == 0:
                f.missing = 1
                return
            run_tasks(f, frame, f.wide_reduce, f.reduce_tasks)
            call(f.merge, frame, 1)
    if f.finish != 0:
        f.marked = 0
        call(f.finish, frame, 0)
        work = f.apply
        if f.marked > 0:
            if f.wide_apply == 0:
                f.missing = 1
                return
            call(f.wide_finish, frame, 0)
            work = f.wide_apply
        run_tasks(f, frame, work, f.apply_tasks)


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
    f.terms = f.channels
    f.first += lo * f.first_channel * f.item_bytes
    f.second += lo * f.second_channel * f.item_bytes
    f.out += lo * f.out_channel * f.item_bytes
    f.statistics += 8 * lo
    f.mean += 8 * lo
    f.var += 8 * lo
    if f.weight != 0:
        f.weight += lo * f.weight_bytes
    if f.bias != 0:
        f.bias += lo * f.weight_bytes
    f.d_weight += lo * f.item_bytes
    f.d_bias += lo * f.item_bytes
    f.scratch += tile * f.tile_bytes
    f.groups = (f.channels + f.group - 1) // f.group
    f.reduce_tasks = f.segments * f.groups
    f.apply_tasks = (f.rows * f.channels * f.length + f.task_size - 1) // f.task_size
    f.loop = 0
    all_steps(own)
    if f.missing:
        frame_at(frame).missing = 1


@part("tile_by_tile")
def tile_by_tile(frame, task, like):
    """All steps, of one tile after the other or of several on threads."""
    f = frame_at(frame)
    run_tasks(f, frame, f.each_tile, f.tiles)
