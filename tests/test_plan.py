"""How arrays are walked: which views are read in place, and that no call copies x."""

import pickle
import tracemalloc

import numpy as np
import pytest

import fastbn
from tests import internals, reference
from tests.internals import forget_plans, prepared_evaluate

X = np.zeros((6, 8, 10, 12), np.float32)
LAST = np.zeros((6, 10, 12, 8), np.float32)


@pytest.mark.parametrize(
    ("x", "axis", "expected"),
    [
        (X, 1, "first"),
        (X[2:5], 1, "first"),
        (X[::2], 1, "first"),
        (X[:, 3:7], 1, "first"),
        (X[:, ::2], 1, "first"),
        (X.transpose(0, 1, 3, 2), 1, "first"),
        (X.transpose(1, 0, 2, 3), 0, "first"),
        (X[:, :, 2], 1, "first"),
        (LAST, 3, "last"),
        (LAST.transpose(0, 3, 1, 2), 1, "last"),
        (LAST.transpose(0, 3, 1, 2)[1:3], 1, "last"),
        (LAST.transpose(0, 3, 1, 2)[:, 2:6], 1, "last"),
        (LAST[::2], 3, None),  # two outer strides
        (X[..., ::2], 1, None),
        (X[::-1], 1, None),
        (X[:, ::-1], 1, None),
        (np.broadcast_to(X[:1], X.shape), 1, None),
        (np.zeros((50, 8), np.float32), 1, "last"),
        (np.zeros((50, 8), np.float32)[:, 1:5], 1, "last"),
        (np.zeros((50, 8), np.float32)[::3], 1, "last"),
        (np.zeros((8, 50), np.float32).T, 1, "first"),
        (np.zeros((50, 8), np.float32)[:, ::2], 1, None),
        (np.zeros((1, 64, 1, 1), np.float32), 1, "last"),
        (np.zeros((50, 1), np.float32), 1, "first"),
        (X.astype(">f4"), 1, None),
    ],
)
def test_which_views_are_read_in_place(x, axis, expected):
    assert internals.layout(x, axis) == expected


def test_strides_that_are_no_whole_elements():
    assert internals.can_be_walked((4, 3), 8, 1, (48, 8))
    assert not internals.can_be_walked((4, 3), 8, 1, (36, 12))


def test_flat_views_share_memory_and_have_one_type():
    read_only = X.copy()
    read_only.flags.writeable = False
    for x in (X, X[2:5], X[:, 3:7], LAST.transpose(0, 3, 1, 2), read_only):
        view = internals.flat_view(x, 1)
        assert view.ndim == 1
        assert view.flags.carray
        assert np.shares_memory(view, x)
    assert not read_only.flags.writeable


def peak_bytes(call):
    """Largest memory that a call holds beyond what was there before, its result included."""
    call()
    tracemalloc.start()
    try:
        kept = call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        del kept


@pytest.mark.compiled
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("view", ["whole", "slice", "inner step", "reversed", "read-only"])
def test_no_temporary_of_the_size_of_x(view, axis):
    shape = (16, 8, 64, 64) if axis == 1 else (16, 64, 64, 8)
    base = np.ones(shape, np.float32)
    x = {
        "whole": lambda: base,
        "slice": lambda: base[3:],
        "inner step": lambda: np.ones((*shape[:2], 128, shape[3]), np.float32)[:, :, ::2],
        "reversed": lambda: base[::-1],
        "read-only": lambda: np.broadcast_to(base, base.shape),
    }[view]()
    weight = np.ones(8, np.float32)
    allowance = 64 * 1024
    assert peak_bytes(lambda: fastbn.batch_norm(x, None, None, weight, axis=axis)) < (
        x.nbytes + allowance
    )
    assert peak_bytes(lambda: fastbn.batch_norm(x, weight, weight, weight, axis=axis)) < (
        x.nbytes + allowance
    )
    out = np.empty_like(x)
    assert peak_bytes(lambda: fastbn.batch_norm(x, axis=axis, out=out)) < allowance
    if view in ("whole", "slice", "read-only"):
        _, cache = fastbn.batch_norm_forward(x, axis=axis)
        assert peak_bytes(lambda: fastbn.batch_norm_backward(x, cache)) < x.nbytes + allowance
        assert peak_bytes(lambda: fastbn.channel_stats(x, axis)) < allowance


def test_a_gradient_in_another_memory_order_costs_no_temporary():
    x = np.ones((16, 8, 64, 64), np.float32)
    dy = np.moveaxis(np.ones((16, 64, 64, 8), np.float32), -1, 1)
    _, cache = fastbn.batch_norm_forward(x)
    assert peak_bytes(lambda: fastbn.batch_norm_backward(dy, cache)) < x.nbytes + 64 * 1024


class TestFastEvaluation:
    """A call like one before goes straight to the kernel; whatever differs goes the long way."""

    @pytest.fixture
    def call(self, rng):
        x = rng.normal(2, 3, (4, 3, 5)).astype(np.float32)
        vectors = [*rng.normal(size=(1, 3)), *rng.uniform(1, 2, (3, 3))]
        vectors = [v.astype(np.float32) for v in vectors]
        fastbn.batch_norm(x, *vectors)
        return x, vectors

    @pytest.mark.compiled
    @pytest.mark.parametrize("axis", [1, -2])
    def test_it_gives_the_same_bits(self, call, axis):
        x, vectors = call
        forget_plans()
        slow = fastbn.batch_norm(x, *vectors, axis=axis)
        assert internals.remembered_evaluations() == 1
        fast = prepared_evaluate(x, *vectors, 1e-5, axis, None)
        np.testing.assert_array_equal(fast, slow)
        out = np.empty_like(x)
        assert prepared_evaluate(x, *vectors, 1e-5, axis, out) is out
        np.testing.assert_array_equal(out, slow)
        work = x.copy()
        assert prepared_evaluate(work, *vectors, 1e-5, axis, work) is work
        np.testing.assert_array_equal(work, slow)

    @pytest.mark.compiled
    def test_absent_parameters(self, call):
        x, (mean, var, _, _) = call
        fast = prepared_evaluate(x, mean, var, None, None, 1e-5, 1, None)
        wanted = reference.normalize(x, mean, var, np.ones(3), np.zeros(3), 1e-5, 1)
        np.testing.assert_allclose(fast, wanted.astype(float), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        "change",
        [
            lambda x, v: (x[:3], *v, 1e-5, 1, None),  # another shape
            lambda x, v: (x.astype(float), *v, 1e-5, 1, None),
            lambda x, v: (x.tolist(), *v, 1e-5, 1, None),
            lambda x, v: (np.ma.array(x), *v, 1e-5, 1, None),
            lambda x, v: (x.view(np.matrix) if x.ndim == 2 else None, *v, 1e-5, 1, None),
            lambda x, v: (_read_only(x), *v, 1e-5, 1, None),
            lambda x, v: (x, v[0].astype(float), *v[1:], 1e-5, 1, None),
            lambda x, v: (x, v[0].view(np.int32), *v[1:], 1e-5, 1, None),
            lambda x, v: (x, v[0].astype(">f4"), *v[1:], 1e-5, 1, None),
            lambda x, v: (x, np.zeros(4, np.float32), *v[1:], 1e-5, 1, None),
            lambda x, v: (x, np.zeros((3, 1), np.float32), *v[1:], 1e-5, 1, None),
            lambda x, v: (x, np.zeros(6, np.float32)[::2], *v[1:], 1e-5, 1, None),
            lambda x, v: (x, v[0].tolist(), *v[1:], 1e-5, 1, None),
            lambda x, v: (x, None, *v[1:], 1e-5, 1, None),
            lambda x, v: (x, *v, 0.0, 1, None),
            lambda x, v: (x, *v, float("nan"), 1, None),
            lambda x, v: (x, *v, "1e-5", 1, None),
            lambda x, v: (x, *v, 1e-5, 0, None),
            lambda x, v: (x, *v, 1e-5, "1", None),
            lambda x, v: (x, *v, 1e-5, [1], None),
            lambda x, v: (x, *v, 1e-5, True, None),
            lambda x, v: (x, np.ma.array(v[0]), *v[1:], 1e-5, 1, None),
            lambda x, v: (x, *v, 1e-5, 1, _read_only(np.empty_like(x))),
            lambda x, v: (x, *v, 1e-5, 1, x[:, :, :4]),
            lambda x, v: (x, *v, 1e-5, 1, np.empty((4, 3, 5))),
            lambda x, v: (x, *v, 1e-5, 1, np.empty((4, 3, 10), np.float32)[..., ::2]),
            lambda x, v: (lambda a, b: (a, *v, 1e-5, 1, b))(*_overlapping(x)),
            lambda x, v: (x, *v, 1e-5, 1, _read_only(np.empty((4, 3, 5), np.float32))),
            lambda x, v: (x, *v, 1e-5, 1, "out"),
        ],
    )
    def test_what_differs_goes_the_long_way(self, call, change):
        x, vectors = call
        assert prepared_evaluate(*change(x, vectors)) is None

    @pytest.mark.compiled
    def test_arrays_that_others_own(self, call):
        """Rows of a table of parameters, an output inside a larger array, odd addresses."""
        x, vectors = call
        slow = fastbn.batch_norm(x, *vectors)
        out = np.empty((5, 3, 5), np.float32)[1:]
        assert prepared_evaluate(x, *np.stack(vectors), 1e-5, 1, out) is out
        np.testing.assert_array_equal(out, slow)
        unaligned = [_unaligned(v) for v in vectors]
        np.testing.assert_array_equal(fastbn.batch_norm(_unaligned(x), *unaligned), slow)

    @pytest.mark.compiled
    def test_unpickled_arrays_whose_dtype_is_an_object_of_their_own(self, call):
        x, _ = pickle.loads(pickle.dumps(call))
        assert x.dtype is not np.dtype(np.float32)
        slow = fastbn.batch_norm(*call[:1], *call[1])
        np.testing.assert_array_equal(prepared_evaluate(x, *call[1], 1e-5, 1, None), slow)
        layer = pickle.loads(pickle.dumps(fastbn.BatchNorm1d(3).eval()))
        layer(call[0])
        fast = prepared_evaluate(
            call[0], layer.running_mean, layer.running_var, layer.weight, layer.bias,
            layer.eps, layer.axis, None,
        )  # fmt: skip
        assert fast is not None

    @pytest.mark.compiled
    @pytest.mark.parametrize("training", [False, True])
    def test_parameters_of_another_rank_beside_a_large_array(self, training, rng):
        """Where many threads are used, a kernel would compile what it does not know."""
        x = rng.normal(size=(64, 32, 64)).astype(np.float32)
        good = [np.ones(32, np.float32) for _ in range(4)]
        fastbn.batch_norm(x, *good, training=training)
        for k in range(4):
            bad = [v[None] if i == k else v for i, v in enumerate(good)]
            with pytest.raises(ValueError, match=r"expected .* of shape"):
                fastbn.batch_norm(x, *bad, training=training)

    def test_an_input_that_has_been_reshaped_since_the_forward(self, rng):
        x = rng.normal(size=(4, 6, 5)).astype(np.float32)
        _, cache = fastbn.batch_norm_forward(x, training=True)
        x.shape = (4, 5, 6)
        with pytest.raises(RuntimeError, match="another shape"):
            fastbn.batch_norm_backward(np.ones_like(x), cache)

    @pytest.mark.compiled
    def test_an_output_that_overlaps_a_parameter(self, call):
        x, (mean, var, weight, _) = call
        out = np.empty_like(x)
        assert prepared_evaluate(x, mean, var, weight, out[0, 0, :3], 1e-5, 1, out) is None

    @pytest.mark.compiled
    def test_it_does_not_remember_without_end(self, call, monkeypatch):
        internals.remember_at_most(monkeypatch, 3)
        _, vectors = call
        for n in range(1, 9):
            fastbn.batch_norm(np.ones((n, 3, 2), np.float32), *vectors)
        assert 0 < internals.remembered_evaluations() <= 3


def _overlapping(x):
    """An array like x, and one that begins at its second value."""
    memory = np.concatenate([x.ravel(), x.ravel()])
    return [memory[k : k + x.size].reshape(x.shape) for k in (0, 1)]


def _read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def _unaligned(a):
    view = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    view[:] = a
    return view
