"""Loops over memory. A kernel never checks its arguments and never sees a layer.

The words, each with one meaning everywhere:

=============  ====================================================================================
row            contiguous values of one sample and one channel; channels last: of one sample and
               all channels; in `rows`: values that are normalized together
piece          of a row that is too long for one line (channels first)
fold           rows that are read as one line, which few channels would not fill (channels last)
column         a value of a line: one channel has one, or ``fold`` of them (channels last)
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
power          the sum of squares of deviations from shifts; much more than m2 costs digits
held           how memory has a value: 16 bits stand for floating-point numbers; they are computed
               in float32
kind           the name of a dtype as memory has it, where integers are integers (`standardize`)
way, run       how positions of a row are walked from one kind of memory to another; what does it
fused          of a pass that also adds a residual, or ends in an activation
per_group      channels that a group norm takes together; to sums, such a group is one channel
left           of a row in `rows` that float32 cannot hold: the caller does it again in float64
marked         of a channel that x's precision cannot sum or compute; it is done again in float64
wide           of what works in float64, for marked channels
part           native code that runs on a frame and a task, reached through its address
frame          the record that tells parts where everything lies and how work is cut
entry          what Python calls: it fills in a frame and runs a part
unit           a part for a dtype or an entry for two: what is compiled, and kept, by itself
target         what a unit's code is made for: versions of all that makes it, and a processor
=============  ====================================================================================

From the outside in: `parts` (which parts an operation has), `entries`, `passes` (all steps of an
operation; threads), `merge` and `terms` (per channel, between the passes), ``sums`` and
``elementwise`` of each layout, `rows` (all steps of a row at once), `moments` and `loops` (the
loops they are made of), `simd`. Beside these: `standardize`, from bytes to normalized float32.
"""
