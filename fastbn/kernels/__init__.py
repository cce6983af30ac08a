"""Loops over memory. A kernel never checks its arguments and never sees a layer.

The words, each with one meaning everywhere:

=============  ====================================================================================
row            the contiguous values of one sample and one channel (channels first); what follows
               each other in memory for one sample (channels last, where it holds all channels)
line           what is read at one go for every channel of a task: a row or a piece of a long one
               (channels first), one or several rows (channels last)
block          lines whose sums are kept in x's precision, around one shift
segment        blocks whose statistics have their own first shift; segments are merged in order
group          channels (or columns of a line) that one task of sums takes together
task           what one thread takes: a segment of a group, or some values of an elementwise pass
tile           channels that go through all steps of an operation while they are in cache
shift          what is subtracted before squares are summed; it follows the channel's mean
center         the mean in x's precision, which the elementwise pass subtracts
terms          what the elementwise pass needs of a channel: center, scale, shift (slope, offset)
marked         of a channel that float32 cannot hold: it is summed and computed in float64
wide           of what works in float64 on float32 arrays, for marked channels
part           native code that runs on a frame and a task, reached through its address
frame          the record that tells parts where everything lies and how work is cut
entry          what Python calls: it fills in a frame and runs a part
=============  ====================================================================================

From the outside in: `parts` (which parts an operation has), `entries`, `passes` (all steps of an
operation; threads), `merge` and `terms` (per channel, between the passes), ``sums`` and
``elementwise`` of each layout, `moments` and `loops` (the loops they are made of), `simd`.
"""
