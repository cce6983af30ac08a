"""Arrays that are hard to sum: a family of distributions, layouts, scales, means and outliers.

Seeded, and nothing of fastbn: where its sums begin, how they are cut and what they are taken
around shall not show. A `Member` is a row of the table; its array is made when it is asked for.
"""

from dataclasses import dataclass

import numpy as np

#: Layouts: shape and channel axis. Odd sizes, long rows, short rows, one sample, few channels.
FORMS = {
    "NCHW": ((16, 3, 64, 64), 1),
    "NCHW planes": ((32, 24, 7, 7), 1),
    "NCHW odd": ((5, 7, 13, 11), 1),
    "NCL long rows": ((2, 3, 9001), 1),
    "one sample": ((1, 2, 70001), 1),
    "NC": ((4096, 64), 1),
    "NC tall": ((20011, 3), 1),
    "NC wide": ((260, 2000), 1),
    "NHWC": ((8, 24, 24, 16), -1),
    "NHWC odd": ((3, 17, 19, 133), -1),
    "small": ((64, 8), 1),
}

ONE_WAY = (1.9216309, 1.3964844, 1.9260254)

# --- distributions: (rng, values of a channel and of a sample, channels) -> (values, channels) ----


def normal(rng, count, sample, channels):
    return rng.standard_normal((count, channels))


def two_valued(rng, count, sample, channels):
    """Two values, of a size of its own in each channel: equal squares round the same way.

    Those of `ONE_WAY` do so in nearly every addition of a long chain in float32.
    """
    size = rng.uniform(1, 2, channels)
    size[: len(ONE_WAY)] = ONE_WAY[:channels]
    return np.where(rng.random((count, channels)) < 0.5, -size, size)


def ascending(rng, count, sample, channels):
    return np.sort(normal(rng, count, sample, channels), axis=0)


def alternating(rng, count, sample, channels):
    """Scales 1 and 1000 in turn."""
    return normal(rng, count, sample, channels) * np.where(np.arange(count) % 2, 1e3, 1)[:, None]


def alternating_signs(rng, count, sample, channels):
    """Large values that cancel, in turn, and a little noise."""
    signs = np.where(np.arange(count) % 2, 1.0, -1.0)[:, None]
    return signs * 3 + 1e-3 * normal(rng, count, sample, channels)


def sparse(rng, count, sample, channels):
    return np.where(rng.random((count, channels)) < 0.01, normal(rng, count, sample, channels), 0)


def drifting(rng, count, sample, channels):
    slope = 10 * np.arange(count)[:, None] / count
    return slope + normal(rng, count, sample, channels)


def walking(rng, count, sample, channels):
    return normal(rng, count, sample, channels).cumsum(axis=0)


def lognormal(rng, count, sample, channels):
    return rng.lognormal(0, 3, (count, channels))


def power_law(rng, count, sample, channels):
    return rng.pareto(1.1, (count, channels))


def brightness(rng, count, sample, channels):
    """A value per sample, and a little noise."""
    of_sample = 5 * rng.standard_normal((-(-count // sample), channels))
    return of_sample.repeat(sample, axis=0)[:count] + 0.01 * normal(rng, count, sample, channels)


def stairs(rng, count, sample, channels):
    """Long runs of one value."""
    steps = 5 * rng.standard_normal((-(-count // 260), channels))
    return steps.repeat(260, axis=0)[:count]


def pixels(rng, count, sample, channels):
    return rng.integers(0, 256, (count, channels)) / 255


def leading_zeros(rng, count, sample, channels):
    values = 3 + normal(rng, count, sample, channels)
    values[: count // 8] = 0
    return values


def half_zeros(rng, count, sample, channels):
    """Each sample's second half is padding."""
    values = 50 + normal(rng, count, sample, channels)
    values[np.arange(count) % (2 * max(1, sample // 2)) >= max(1, sample // 2)] = 0
    return values


DISTRIBUTIONS = {
    function.__name__: function
    for function in (
        normal, two_valued, ascending, alternating, alternating_signs, sparse, drifting, walking,
        lognormal, power_law, brightness, stairs, pixels, leading_zeros, half_zeros,
    )
}  # fmt: skip

# --- places of outliers: (rng, values, values of a sample, their size in each channel) -----------


def nowhere(rng, values, sample, size):
    pass


def first(rng, values, sample, size):
    values[0] = size


def near_300(rng, values, sample, size):
    """Flat index 300, channels last; and value 300 of the first channel."""
    row, channel = divmod(300, values.shape[1])
    values[min(row, len(values) - 1), channel] = size[channel]
    values[min(300, len(values) - 1), 0] = size[0]


def middle(rng, values, sample, size):
    values[len(values) // 2] = size


def last(rng, values, sample, size):
    values[-1] = -size


def several(rng, values, sample, size):
    values[rng.integers(0, len(values), 5)] = size * rng.uniform(-1, 1, (5, 1))


def whole_rows(rng, values, sample, size):
    """One sample, or a sixteenth of all where there are few."""
    few = min(sample, max(1, len(values) // 16))
    start = len(values) // 3 // few * few
    values[start : start + few] = size


def first_eight(rng, values, sample, size):
    values[:8] = size * rng.uniform(0.5, 1, (min(8, len(values)), 1))


def two_places(rng, values, sample, size):
    """Two of beginning, middle and end, of the whole and of each eighth."""
    for length in (len(values), -(-len(values) // 8)):
        reach = min(24, -(-length // 8))
        for n, start in enumerate(range(0, len(values), length)):
            for half in ((0, 2), (0, 1), (1, 2))[n % 3]:
                at = start + half * length // 2
                values[max(0, at - reach) : at + reach] = size


def boundaries(rng, values, sample, size):
    """Both sides of where blocks may begin, with signs that cancel."""
    for period in (64, 256, 260, 4096):
        values[::period] += size
        values[period - 1 :: period] -= size


PLACES = {
    function.__name__: function
    for function in (
        nowhere, first, near_300, middle, last, several, whole_rows, first_eight, two_places,
        boundaries,
    )
}  # fmt: skip

SIZES = (1.4, 1e1, 1e2, 1e4, 1e8, 1e12, 1e19, 1e30)
SCALES = (1e-20, 1e-6, 1.0, 1e6, 1e20)
MEANS = (0.0, 1.0, -30.0, 1e4)
LARGEST = 1e37


@dataclass(frozen=True)
class Member:
    """One array of the family. ``size`` of outliers and ``mean`` are in standard deviations."""

    form: str
    distribution: str
    place: str = "nowhere"
    size: float = 1.0
    scale: float = 1.0
    mean: float = 0.0
    seed: int = 0

    def __str__(self):
        outliers = "" if self.place == "nowhere" else f", {self.place} {self.size:g}"
        far = "" if self.mean == 0 else f", mean {self.mean:g}"
        return f"{self.form}, {self.distribution}{outliers}, scale {self.scale:g}{far}"

    @property
    def axis(self):
        return FORMS[self.form][1]

    def values(self):
        """(values, channels): each channel's in the order of memory."""
        shape, axis = FORMS[self.form]
        channels = shape[axis]
        count = int(np.prod(shape)) // channels
        sample = 1 if len(shape) == 2 else count // shape[0]
        rng = np.random.default_rng([self.seed, *str(self).encode()])
        values = DISTRIBUTIONS[self.distribution](rng, count, sample, channels)
        std = values.std(axis=0)
        values = values + self.mean * std
        PLACES[self.place](rng, values, sample, self.size * std)
        return np.clip(values * self.scale, -LARGEST, LARGEST).astype(np.float32)

    def array(self):
        """The float32 array, contiguous."""
        shape, axis = FORMS[self.form]
        *others, channels = np.moveaxis(np.empty(shape, bool), axis, -1).shape
        return np.ascontiguousarray(np.moveaxis(self.values().reshape(*others, channels), -1, axis))


def random_members(count, seed, forms=tuple(FORMS), distribution=None, place=None):
    """Members by chance; in the distribution and place that are given."""
    rng = np.random.default_rng(seed)

    def one_of(options):
        return options[rng.integers(len(options))]

    for n in range(count):
        form, size, scale, mean = map(one_of, (forms, SIZES, SCALES, MEANS))
        yield Member(
            form, distribution or one_of(tuple(DISTRIBUTIONS)), place or one_of(tuple(PLACES)),
            size, scale, mean, n,
        )  # fmt: skip
