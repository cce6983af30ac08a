"""Batch norm with the statistics of all ranks."""

from __future__ import annotations  # so that `help` shows types as they are written here

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NoReturn, TypeVar, get_args

import numpy as np
from numpy.typing import DTypeLike

from fastbn._call import backend, operations, settings
from fastbn._call.epilogue import Activation, refuse_with
from fastbn._call.keywords import hide_foreign, refuse
from fastbn._call.operations import Forward, ForwardCache
from fastbn._call.settings import Device, OnNonfinite
from fastbn._call.sync import Evaluation, Sync
from fastbn.distributed.collectives import Communicator, check_comm
from fastbn.distributed.exchange import MpiExchange, Terms, Unconnected, agree
from fastbn.functional import Gradients
from fastbn.layers.base import BatchNorm

_Layer = TypeVar("_Layer", bound="SyncBatchNorm")

#: Whose sums the gradients of weight and bias are: this rank's, or those of all ranks.
Sums = Literal["local", "global"]
#: What may be set on a layer, and must be set alike on all ranks.
_ALIKE = "eps", "momentum", "on_nonfinite", "activation", "negative_slope", "parameter_gradients"
#: As many dimensions as an array of NumPy's can have.
_MOST = 64


class SyncBatchNorm(BatchNorm):
    """Batch normalization whose batch is spread over the ranks of a communicator.

    Each rank calls the layer with its part of the batch, and normalizes that with the
    statistics of the whole::

        mean, var = those of the parts of all ranks together
        y         = (x - mean) / sqrt(var + eps) * weight + bias

    as `BatchNorm2d` would on the parts one after another. Parts may have different numbers of
    samples, or none. All ranks get the same bits of statistics, whoever comes first.

    A training call, its ``backward``, the constructor and ``layer.comm = comm`` are collective: all
    ranks make them, in the same order, from one thread. A rank whose batches have ended goes on
    with empty ones, as many as the longest has. If a check fails on one rank, all ranks raise, and
    nothing has changed on any. An evaluation call exchanges nothing, and without running statistics
    (``track_running_stats=False``) takes those of its own part alone. Its ``backward`` exchanges
    something, and is collective, with ``parameter_gradients="global"`` alone.

    A rank sends ``16 * C + 56`` bytes in each direction; large messages in slices for each of P
    ranks, which are P times ``16 * ceil(C / P) + 56`` bytes, and then ``16 * ceil(C / P)``.

    A rank that ends, or goes to evaluation alone, lets the others wait: start programs by ``mpiexec
    -n 4 python -m mpi4py program.py``, by which an uncaught exception of one rank ends all. Who has
    waited 10 minutes raises TimeoutError, and the communicator takes no more calls. In the
    environment of all ranks, ``FASTBN_RANKS_TIMEOUT=60`` says how many seconds else, 0 for ever;
    ``FASTBN_CHECK_CALLS=1`` has each exchange say first which layer and call it is of, and not only
    the first of each layer.

    `fastbn.recalibrate` sees the batches of its own rank alone: do it on one rank, and load its
    state dict on the others.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    eps, momentum, affine, track_running_stats, dtype, bias, on_nonfinite
        As of `BatchNorm2d`. ``on_nonfinite`` is about the whole batch: with "raise", the rank that
        holds NaN or infinity says where, and all ranks raise.
    device : None or "cpu"
    comm : communicator of mpi4py
        ``MPI.COMM_WORLD``, or a part of it (``comm.Split``), which is what torch calls a process
        group. Any object with ``Get_rank``, ``Get_size`` and ``Allgather`` of arrays does.
        Pickles leave it out: set ``layer.comm`` on all ranks after loading. Then, as in
        `convert_sync_batchnorm`, all ranks must have the same weights and running statistics. A
        copy shares it; ranks that train copies make as many of them.
        Where other threads use the communicator, give layers their own: ``comm.Dup()``.
    axis : int
        Channel axis; -1 for channels last. Of an ``x`` of two dimensions it is always 1.
    activation, negative_slope
        As of `BatchNorm2d`; a call may add a residual.
    parameter_gradients : {"local", "global"}
        What ``backward`` gives for weight and bias: sums over this rank's part, as torch does,
        for programs that then sum or average all gradients over ranks; or sums over the whole
        batch, which the exchange has anyway, so that all ranks take the same step.

    Raises
    ------
    TypeError, ValueError
        In the constructor, if an argument is not one of these, or ranks differ; in a call, if
        ``x`` does not fit, its dtype differs between ranks, or all ranks together have one value
        per channel.
    RuntimeError
        If another rank has refused its part (the message names it and has its error), if ranks
        make different calls, if the layer has no communicator, or one on which a call was given up.
    TimeoutError
        If another rank does not come.
    NotImplementedError
        With a mask, ``virtual_batch_size`` or a device.

    References
    ----------
    Ioffe & Szegedy, "Batch Normalization", 2015, algorithm 1; statistics of the parts are merged
    as Chan, Golub & LeVeque do, 1979. Names and meanings are those of ``torch.nn.SyncBatchNorm``;
    ``comm`` is its ``process_group``.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbn.distributed import SyncBatchNorm
    >>> class Alone:  # in place of mpi4py's MPI.COMM_WORLD: a communicator of one rank
    ...     def Get_rank(self): return 0
    ...     def Get_size(self): return 1
    ...     def Allgather(self, send, receive): receive[...] = send
    >>> layer = SyncBatchNorm(2, comm=Alone())
    >>> layer(np.array([[1.0, 0.0], [3.0, 8.0]], np.float32)).round(3)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> layer.backward(np.ones((2, 2), np.float32)).bias
    array([2., 2.], dtype=float32)
    """

    __slots__ = {  # noqa: RUF023, with what `help` says of them
        "comm": "The communicator whose ranks have the batch; None after unpickling.",
        "parameter_gradients": "Whose sums the gradients of weight and bias are.",
        "_exchange": "What gets the parts together.",
    }
    comm: Any
    parameter_gradients: Sums
    _exchange: MpiExchange | None

    _takes: ClassVar[dict[int, str]] = dict.fromkeys(range(2, _MOST + 1), "(N, C, ...)")
    _rank = _MOST

    @hide_foreign
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Device = None,
        dtype: DTypeLike | None = None,
        *,
        comm: Communicator = None,  # type: ignore[assignment]  # so that this says what it is
        bias: bool = True,
        axis: int = 1,
        on_nonfinite: OnNonfinite = "propagate",
        activation: Activation | None = None,
        negative_slope: float = 0.01,
        parameter_gradients: Sums = "local",
        **foreign: NoReturn,
    ) -> None:
        def make() -> tuple[str, list[np.ndarray]]:
            if foreign:
                refuse(type(self), foreign)
            self._refuse_device(device)
            self.parameter_gradients = parameter_gradients
            super(SyncBatchNorm, self).__init__(
                num_features, eps, momentum, affine, track_running_stats, device, dtype,
                bias=bias, axis=axis, on_nonfinite=on_nonfinite, activation=activation,
                negative_slope=negative_slope,
            )  # fmt: skip
            return repr(self), []

        if comm is None and foreign:
            refuse(type(self), foreign)  # process_group=None, of which others cannot hear
        self._join(comm, agree(check_comm(comm), make))

    def _join(self, comm: Any, terms: Terms) -> None:
        object.__setattr__(self, "comm", comm)
        self._exchange = MpiExchange(comm, self.num_features, terms)

    def _set_comm(self, comm: Any) -> None:
        def make() -> tuple[str, list[np.ndarray]]:
            check_comm(comm)
            return repr(self), list(self._arrays().values())

        try:
            told = check_comm(comm)
        except (TypeError, ValueError):
            if self.comm is None:
                raise
            told = self.comm  # whose other ranks wait
        self._join(comm, agree(told, make))

    def _checked(self, name: str, value: Any) -> Any:
        if name == "comm":
            self._set_comm(value)
        if name == "parameter_gradients" and not (
            isinstance(value, str) and value in get_args(Sums)
        ):
            raise ValueError(f"parameter_gradients must be 'local' or 'global', got {value!r}")
        if name == "virtual_batch_size" and value is not None:
            raise ValueError(
                "there is no SyncBatchNorm of virtual batches, got virtual_batch_size="
                f"{value!r}; comm.Split gives each group of ranks a communicator, and so statistics"
            )
        return super()._checked(name, value)

    def _refuse_device(self, device: Any) -> None:
        if settings.check_device(device) != "cpu":
            raise NotImplementedError(
                f"there is no SyncBatchNorm on a device yet, got device={device!r}; train on the "
                "CPU, or take BatchNorm2d there, which loads this layer's state dict"
            )

    def to(self: _Layer, device: Device) -> _Layer:
        """Stay on the CPU: there is no synchronized batch norm on a device yet."""
        self._refuse_device(device)
        return super().to(device)

    # --- inputs -----------------------------------------------------------------------------

    def _checked_axis(self, axis: Any) -> int:
        return settings.check_channel_axis(axis)

    def _axis_of(self, ndim: int) -> int:
        return 1 if ndim == 2 else self.axis

    def _fitting_axis(self, shape: tuple[int, ...]) -> int:
        dimensions, axis = len(shape), self._axis_of(len(shape))
        if dimensions < 2:
            raise ValueError(
                f"SyncBatchNorm expects (N, C) or (N, C, ...), got {dimensions} dimensions: shape "
                f"{shape}; a single sample is x[None]"
            )
        if not -dimensions < axis < dimensions:
            raise ValueError(
                f"x of shape {shape} has no channel axis {axis}, the layer's axis; axis=-1 says "
                "that channels are last, axis=1 that they come first"
            )
        if shape[axis] != self.num_features:
            raise ValueError(
                f"x of shape {shape} has {shape[axis]} channels on axis {axis}, and the layer has "
                f"num_features={self.num_features}; for channels last, make it with axis=-1"
            )
        return axis

    # --- calls ------------------------------------------------------------------------------

    @property
    def _plain_training(self) -> bool:
        return False

    def _ranks(self) -> MpiExchange | Unconnected:
        return self._exchange or Unconnected()

    @property
    def _backward_exchanges(self) -> bool:
        return self._in_training or self.parameter_gradients == "global"

    def _refuse_call(self, foreign: Mapping[str, object]) -> NoReturn:
        try:
            super()._refuse_call(foreign)
        except TypeError as error:
            if self._in_training:
                self._ranks().refuse("forward", error)
            raise

    def _train(self, x: Any, out: Any, residual: Any, mask: Any) -> tuple[np.ndarray, ForwardCache]:
        call: Any = None

        def prepare() -> Any:
            nonlocal call
            call = self._checked_call(x, out, residual, mask)
            return call

        alike = [getattr(self, name) for name in _ALIKE]
        y = self._ranks().together("forward", prepare, alike)
        return y, call.cache()

    def _call(self, x: Any, axis: int, out: Any, fused: Any, mask: Any) -> Forward:
        if not self._backward_exchanges:
            return super()._call(x, axis, out, fused, mask)
        if not self._in_training:
            backend.cpu_only(x, "synchronized batch norm")
            return Evaluation(
                self._ranks(), x, self.running_mean, self.running_var, self.weight, self.bias,
                False, self.momentum, self.eps, axis, out, self.on_nonfinite, None, fused, mask,
            )  # fmt: skip
        backend.cpu_only(x, "synchronized batch norm")
        otherwise = "with BatchNorm1d, 2d or 3d, each rank for itself"
        refuse_with("synchronized batch norm", x, None, mask, otherwise, True)
        return Sync(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.momentum,
            self.eps, axis, out, self.on_nonfinite, self.num_batches_tracked, fused,
            self._ranks(), self.parameter_gradients == "global",
        )  # fmt: skip

    def backward(
        self, dy: np.ndarray, cache: ForwardCache | None = None, *, out: np.ndarray | None = None
    ) -> Gradients:
        """Gradients in ``x``, ``weight`` and ``bias``: `fastbn.batch_norm_backward`.

        After a training call this is collective: all ranks call it, those without samples as
        well. After an evaluation call, frozen layers included, it is so with
        ``parameter_gradients="global"``. Gradients of ``x`` are of the sum of the losses of all
        ranks; those of weight and bias are as ``parameter_gradients`` says.

        Parameters
        ----------
        dy : ndarray
            Gradient of the loss in this rank's output.
        cache : ForwardCache, optional
            From `forward_with_cache`; by default that of the last training forward.
        out : ndarray, optional
            Where to write the gradient of ``x``; ``out=dy`` works in place.

        Raises
        ------
        RuntimeError
            If there is no cache and no training forward to take one from, or on another rank.
        """
        try:
            operations.check_cache(self._or_last(cache))
        except (RuntimeError, TypeError) as error:
            if self._backward_exchanges:
                self._ranks().refuse("backward", error)
            raise
        return super().backward(dy, cache, out=out)

    # --- copies -----------------------------------------------------------------------------

    def _unusual(self) -> str:
        way = self.parameter_gradients
        return ("" if way == "local" else f", parameter_gradients={way!r}") + super()._unusual()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the communicator, which is of these processes."""
        return {**super().__getstate__(), "comm": None, "_exchange": None}

    def __copy__(self: _Layer) -> _Layer:
        return copy.deepcopy(self)

    def __deepcopy__(self: _Layer, memo: dict[int, Any]) -> _Layer:
        """A layer of its own on the same communicator, which is not mixed up with this one."""
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        object.__setattr__(new, "comm", self.comm)
        new._exchange = None if self._exchange is None else self._exchange.copied()
        return new
