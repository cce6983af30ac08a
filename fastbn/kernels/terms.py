"""From statistics to the terms of the elementwise pass: rows of the table, a column a channel."""

import numpy as np

from fastbn.kernels import formulas
from fastbn.kernels.compile import inlined, inner, part
from fastbn.kernels.simd import (
    compiled_formula,
    double_rows,
    doubles_at,
    frame_at,
    singles_at,
    value_rows,
    values_at,
)

reciprocal_std = compiled_formula(formulas.reciprocal_std)
residual = compiled_formula(formulas.residual)
center_of = compiled_formula(formulas.center_of)
affine_terms = compiled_formula(formulas.affine_terms)
centered_product_sum = compiled_formula(formulas.centered_product_sum)
weight_gradient = compiled_formula(formulas.weight_gradient)
input_gradient_terms = compiled_formula(formulas.input_gradient_terms)
two_rows, three_rows, four_rows = double_rows(2), double_rows(3), double_rows(4)
three_of_table, four_of_table, five_of_table = value_rows(3), value_rows(4), value_rows(5)

FAR = 1e37  # a mean beyond it may overflow when it is subtracted
LEAST_RSTD, MOST_RSTD = 1e-15, 1e15  # beyond them 1 / var leaves the range of float32
LEAST_FACTOR, MOST_FACTOR = 1e-30, 1e37  # of the data, beyond which it or products lose digits


def holds_deviations(mean, rstd):
    """Whether float32 can hold the deviations of a channel; False for NaN."""
    return (rstd >= LEAST_RSTD) & (rstd <= MOST_RSTD) & (abs(mean) <= FAR)


def holds_factor(factor):
    """Whether float32 can hold what data is multiplied by, and most products."""
    size = abs(factor)
    return (size <= MOST_FACTOR) & ((size >= LEAST_FACTOR) | (size <= 0.0))


@compiled_formula
def holds_one(mean, rstd, scale):
    """Whether float32 can hold the deviations of a channel and a factor."""
    return holds_deviations(mean, rstd) & holds_factor(scale)


@compiled_formula
def holds_two(mean, rstd, scale, slope):
    """`holds_one` of two factors."""
    return holds_deviations(mean, rstd) & holds_factor(scale) & holds_factor(slope)


@inlined
def largest_of(value_bytes):
    """The largest finite number of the dtype that x is computed in."""
    return 3.4028234663852886e38 if value_bytes == 4 else 1.7976931348623157e308


@inner
def widen(address, item_bytes, absent, channels, to):
    """A parameter as float64: of either dtype, or ``absent`` where there is none."""
    if address == 0:
        for c in range(channels):
            to[c] = absent
    elif item_bytes == 8:
        doubles = doubles_at(address, to)
        for c in range(channels):
            to[c] = doubles[c]
    else:
        singles = singles_at(address, to)
        for c in range(channels):
            to[c] = singles[c]


@inner
def repeat_columns(rows, channels, columns):
    """Copy the first ``channels`` columns of some rows to all further ones (channels last)."""
    for row in rows:
        for c in range(channels, columns):
            row[c] = row[c - channels]


# --- normalize ------------------------------------------------------------------------------------


@part("normalizing_terms")
def normalizing_terms(frame, task, like):
    """Center, scale and shift of each channel; of a batch, its statistics."""
    f = frame_at(frame)
    channels, eps = f.channels, f.eps
    mean, var, weight, bias = four_rows(f.parameters, 8 * channels, like)
    if f.statistics != 0:
        _, batch_var, batch_rstd = three_rows(f.statistics, 8 * f.all_channels, like)
        for c in range(channels):
            batch_var[c] /= f.count
            batch_rstd[c] = reciprocal_std(batch_var[c], eps)
    widen(f.mean, f.mean_bytes, 0.0, channels, mean)
    widen(f.var, f.mean_bytes, 0.0, channels, var)
    widen(f.weight, f.weight_bytes, 1.0, channels, weight)
    widen(f.bias, f.weight_bytes, 0.0, channels, bias)
    rows = three_of_table(f.table, f.terms * f.value_bytes, like)
    center, scale, shift = rows
    marked = 0
    for c in range(channels):
        rstd = reciprocal_std(var[c], eps)
        center[c] = mean[c]
        terms = affine_terms(residual(mean[c], center[c]), rstd, weight[c], bias[c])
        scale[c], shift[c] = terms
        marked += not holds_one(mean[c], rstd, terms[0])
    f.marked = marked if f.value_bytes == 4 else 0
    repeat_columns(rows, channels, f.terms)


@part("wide_normalizing_terms")
def wide_normalizing_terms(frame, task, like):
    """A row of marks, and in ``wide_table`` mean, scale and bias."""
    f = frame_at(frame)
    channels = f.channels
    mean, var, weight, bias = four_rows(f.parameters, 8 * channels, like)
    _, _, _, marks = four_of_table(f.table, f.terms * f.value_bytes, like)
    rows = three_rows(f.wide_table, 8 * f.terms, like)
    wide_mean, scale, shift = rows
    for c in range(channels):
        rstd = reciprocal_std(var[c], f.eps)
        wide_mean[c] = mean[c]
        scale[c] = affine_terms(0.0, rstd, weight[c], bias[c])[0]
        shift[c] = bias[c]  # no rounding of the mean to make up for
        marks[c] = 0.0 if holds_one(mean[c], rstd, scale[c]) else 1.0
    repeat_columns(rows, channels, f.terms)
    repeat_columns((marks,), channels, f.terms)


# --- normalize groups of channels -----------------------------------------------------------------
# What is summed together is a group of one sample. The elementwise pass goes over its channels.


@part("group_normalizing_terms")
def group_normalizing_terms(frame, task, like):
    """The groups' statistics; center, scale and shift of each of their channels."""
    f = frame_at(frame)
    each, marked = f.per_group, 0
    mean, var, rstd = three_rows(f.statistics, 8 * f.all_channels, like)
    weight, bias = values_at(f.weight, like), values_at(f.bias, like)
    rows = three_of_table(f.table, f.terms * f.value_bytes, like)
    center, scale, shift = rows
    for g in range(f.channels):
        var[g] /= f.count
        rstd[g] = reciprocal_std(var[g], f.eps)
        of_sample = (f.first_group + g) % f.per_sample * each
        for k in range(each):
            c = g * each + k
            center[c] = mean[g]
            of_weight = np.float64(weight[of_sample + k])
            of_bias = np.float64(bias[of_sample + k])
            terms = affine_terms(residual(mean[g], center[c]), rstd[g], of_weight, of_bias)
            scale[c], shift[c] = terms
            marked += not holds_one(mean[g], rstd[g], terms[0])
    f.marked = marked if f.value_bytes == 4 else 0
    f.channels *= each
    f.length //= each
    f.first_channel = f.out_channel = f.length


@part("wide_group_normalizing_terms")
def wide_group_normalizing_terms(frame, task, like):
    """`wide_normalizing_terms` after `group_normalizing_terms`."""
    f = frame_at(frame)
    each = f.per_group
    mean, _, rstd = three_rows(f.statistics, 8 * f.all_channels, like)
    weight, bias = values_at(f.weight, like), values_at(f.bias, like)
    _, _, _, marks = four_of_table(f.table, f.terms * f.value_bytes, like)
    rows = three_rows(f.wide_table, 8 * f.terms, like)
    wide_mean, scale, shift = rows
    for c in range(f.channels):
        g = c // each
        of_channel = (f.first_group + g) % f.per_sample * each + c - g * each
        wide_mean[c], shift[c] = mean[g], np.float64(bias[of_channel])
        scale[c] = affine_terms(0.0, rstd[g], np.float64(weight[of_channel]), 0.0)[0]
        marks[c] = 0.0 if holds_one(mean[g], rstd[g], scale[c]) else 1.0


# --- gradient -------------------------------------------------------------------------------------


@inlined
def gradients_of_parameters(f, center, d_weight, d_bias, like):
    """Gradients of weight and bias, and centers; ``products`` are around means from here on."""
    mean, _, rstd = three_rows(f.statistics, 8 * f.all_channels, like)
    sums, products = two_rows(f.sums, 8 * f.channels, like)
    marks, largest = doubles_at(f.marks, like), largest_of(f.value_bytes)
    for c in range(f.channels):
        center[c] = center_of(mean[c], largest)
        left = residual(mean[c], np.float64(center[c]))
        around_mean = centered_product_sum(sums[c], products[c], left)
        products[c] = products[c] if marks[c] > 0.0 else around_mean
        d_weight[c], d_bias[c] = weight_gradient(products[c], rstd[c]), sums[c]


@part("gradient_terms")
def gradient_terms(frame, task, like):
    """Gradients of weight and bias; center, scale, slope and offset of each channel.

    Where the statistics are constants, ``dx = dy * scale``: center 0 and a shift that adds nothing.
    """
    f = frame_at(frame)
    channels, marked, weight = f.channels, 0, doubles_at(f.parameters, like)
    mean, _, rstd = three_rows(f.statistics, 8 * f.all_channels, like)
    sums, products = two_rows(f.sums, 8 * channels, like)
    widen(f.weight, f.weight_bytes, 1.0, channels, weight)
    rows = four_of_table(f.table, f.terms * f.value_bytes, like)
    center, scale, slope, offset = rows
    gradients_of_parameters(f, center, values_at(f.d_weight, like), values_at(f.d_bias, like), like)
    for c in range(channels):
        left = residual(mean[c], np.float64(center[c]))
        terms = input_gradient_terms(f.count, sums[c], products[c], left, rstd[c], weight[c])
        scale[c], slope[c], offset[c] = terms
        marked += not holds_two(mean[c], rstd[c], terms[0], terms[1])
    f.marked = marked if f.value_bytes == 4 and f.frozen == 0 else 0
    if f.frozen != 0:
        for c in range(channels):
            center[c], slope[c] = 0.0, -0.0
    repeat_columns(rows, channels, f.terms)


@part("product_sums")
def product_sums(frame, task, like):
    """Gradients of weight and bias alone, in float64."""
    f = frame_at(frame)
    d_weight, d_bias = doubles_at(f.d_weight, like), doubles_at(f.d_bias, like)
    gradients_of_parameters(f, values_at(f.table, like), d_weight, d_bias, like)


@part("wide_gradient_terms")
def wide_gradient_terms(frame, task, like):
    """A row of marks, and in ``wide_table`` mean, scale, slope and offset."""
    f = frame_at(frame)
    channels = f.channels
    mean, _, rstd = three_rows(f.statistics, 8 * f.all_channels, like)
    sums, products = two_rows(f.sums, 8 * channels, like)
    weight = doubles_at(f.parameters, like)
    _, _, _, _, marks = five_of_table(f.table, f.terms * f.value_bytes, like)
    rows = four_rows(f.wide_table, 8 * f.terms, like)
    wide_mean, scale, slope, offset = rows
    for c in range(channels):
        wide_mean[c] = mean[c]
        scale[c], slope[c], offset[c] = input_gradient_terms(
            f.count, sums[c], products[c], 0.0, rstd[c], weight[c]
        )
        marks[c] = 0.0 if holds_two(mean[c], rstd[c], scale[c], slope[c]) else 1.0
    repeat_columns(rows, channels, f.terms)
    repeat_columns((marks,), channels, f.terms)


# --- gradient of groups of channels ---------------------------------------------------------------
# The channels of a group of one sample are summed each by itself, for their gradients of weight
# and bias. The terms of all come from the sums of their group, each channel's times its weight.


@inlined
def sums_of_group(f, first, weight, sums, products):
    """``sum(dy * weight)`` and ``sum(dy * weight * (x - mean))`` of a group."""
    sum_dy = sum_dy_xm = 0.0
    for c in range(first, first + f.of_group):
        sum_dy += weight[c] * sums[c]
        sum_dy_xm += weight[c] * products[c]
    return sum_dy, sum_dy_xm


@part("group_gradient_terms")
def group_gradient_terms(frame, task, like):
    """`gradient_terms` of the channels of groups."""
    f = frame_at(frame)
    channels, marked, weight = f.channels, 0, doubles_at(f.parameters, like)
    mean, _, rstd = three_rows(f.statistics, 8 * f.all_channels, like)
    sums, products = two_rows(f.sums, 8 * channels, like)
    widen(f.weight, f.weight_bytes, 1.0, channels, weight)
    center, scale, slope, offset = four_of_table(f.table, f.terms * f.value_bytes, like)
    gradients_of_parameters(f, center, values_at(f.d_weight, like), values_at(f.d_bias, like), like)
    for first in range(0, channels, f.of_group):
        sum_dy, sum_dy_xm = sums_of_group(f, first, weight, sums, products)
        left = residual(mean[first], np.float64(center[first]))
        for c in range(first, first + f.of_group):
            # a weight is in the sums already; it remains that of the channel's own dy
            terms = input_gradient_terms(f.count, sum_dy, sum_dy_xm, left, rstd[c], 1.0)
            scale[c], slope[c], offset[c] = terms[0] * weight[c], terms[1], terms[2]
            marked += not holds_two(mean[c], rstd[c], terms[0] * weight[c], terms[1])
    f.marked = marked if f.value_bytes == 4 else 0


@part("wide_group_gradient_terms")
def wide_group_gradient_terms(frame, task, like):
    """`wide_gradient_terms` of the channels of groups."""
    f = frame_at(frame)
    channels = f.channels
    mean, _, rstd = three_rows(f.statistics, 8 * f.all_channels, like)
    sums, products = two_rows(f.sums, 8 * channels, like)
    weight = doubles_at(f.parameters, like)
    _, _, _, _, marks = five_of_table(f.table, f.terms * f.value_bytes, like)
    wide_mean, scale, slope, offset = four_rows(f.wide_table, 8 * f.terms, like)
    for first in range(0, channels, f.of_group):
        sum_dy, sum_dy_xm = sums_of_group(f, first, weight, sums, products)
        for c in range(first, first + f.of_group):
            terms = input_gradient_terms(f.count, sum_dy, sum_dy_xm, 0.0, rstd[c], 1.0)
            wide_mean[c], scale[c], slope[c], offset[c] = mean[c], terms[0] * weight[c], *terms[1:]
            marks[c] = 0.0 if holds_two(mean[c], rstd[c], scale[c], slope[c]) else 1.0


# --- gradient with given terms --------------------------------------------------------------------
# ``statistics`` holds them: float64 rows of mean, scale, slope and offset.


@part("given_gradient_terms")
def given_gradient_terms(frame, task, like):
    """Center, scale, slope and offset of each channel, as the caller has worked them out."""
    f = frame_at(frame)
    channels, largest, marked = f.channels, largest_of(f.value_bytes), 0
    mean, given_scale, given_slope, given_offset = four_rows(f.statistics, 8 * f.all_channels, like)
    rows = four_of_table(f.table, f.terms * f.value_bytes, like)
    center, scale, slope, offset = rows
    for c in range(channels):
        center[c] = center_of(mean[c], largest)
        scale[c], slope[c] = given_scale[c], given_slope[c]
        offset[c] = given_offset[c] - given_slope[c] * residual(mean[c], center[c])
        marked += not holds_two(mean[c], 1.0, given_scale[c], given_slope[c])
    f.marked = marked if f.value_bytes == 4 else 0
    repeat_columns(rows, channels, f.terms)


@part("wide_given_gradient_terms")
def wide_given_gradient_terms(frame, task, like):
    """A row of marks, and in ``wide_table`` the terms as they are."""
    f = frame_at(frame)
    channels = f.channels
    given = four_rows(f.statistics, 8 * f.all_channels, like)
    _, _, _, _, marks = five_of_table(f.table, f.terms * f.value_bytes, like)
    rows = four_rows(f.wide_table, 8 * f.terms, like)
    for c in range(channels):
        for k in range(4):
            rows[k][c] = given[k][c]
        marks[c] = 0.0 if holds_two(given[0][c], 1.0, given[1][c], given[2][c]) else 1.0
    repeat_columns(rows, channels, f.terms)
    repeat_columns((marks,), channels, f.terms)
