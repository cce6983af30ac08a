"""What every layer is made of: arrays and modes; how they are kept, moved and loaded."""

from __future__ import annotations  # so that `help` shows types as they are written here

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from fastbn._call import arguments, backend, places, settings
from fastbn._call.settings import Device
from fastbn.layers.attributes import Attributes
from fastbn.layers.state_dict import IncompatibleKeys, read_state

_Layer = TypeVar("_Layer", bound="Layer")


class Layer(Attributes):
    """Arrays of a layer, its modes, and what is done with them."""

    __slots__ = {  # noqa: RUF023, with what `help` says of them
        "eps": "Added to the variance inside the root.",
        "weight": "Scale (gamma), or None.",
        "bias": "Shift (beta), or None.",
        "_cache": "The last training forward.",
        "_device": "Where the arrays are: cpu, cuda or cuda:1.",
        "_frozen": "Whether `training` is False whatever `train` says.",
        "_in_training": "`_training` and not `_frozen`, kept because every call asks.",
        "_training": "What `train` and `eval` said.",
    }
    eps: float
    # "| Any", not "| None": who trains a layer knows that it has them, and needs no assert
    weight: np.ndarray | Any
    bias: np.ndarray | Any
    _cache: Any
    _device: str
    _frozen: bool
    _in_training: bool
    _training: bool

    #: Arrays, in the order of torch's state dicts, and what they start from: those that learn, and
    #: those that are measured.
    _LEARNS: ClassVar[dict[str, int]] = {"weight": 1, "bias": 0}
    _MEASURED: ClassVar[dict[str, int]] = {}
    #: What such layers never have, and what to say to who loads it.
    _HAS_NO: ClassVar[dict[str, str]] = {}

    @property
    def _shape(self) -> tuple[int, ...]:
        """Of each of the arrays, but the counter."""
        raise NotImplementedError

    @property
    def _of(self) -> str:
        """Where that shape comes from, for messages."""
        raise NotImplementedError

    def _checked(self, name: str, value: Any) -> Any:
        if name == "eps":
            return settings.check_eps(value)
        if name in self._LEARNS or name in self._MEASURED:
            return self._checked_array(name, value)
        return value

    def _checked_array(self, name: str, value: Any) -> Any:
        had = getattr(self, name, value)  # not set yet while the layer is made
        if had is None and value is not None:
            raise ValueError(f"this layer was made without {name}; make another to have one")
        if had is not None and value is None:
            raise ValueError(
                f"{name} cannot be removed, got None; make a layer that has none (affine=False, "
                "elementwise_affine=False, bias=False or track_running_stats=False)"
            )
        if value is None:
            return None
        if name == "num_batches_tracked":
            return arguments.check_counter(value)
        if places.on_device(value) or self._device != "cpu":
            return self._checked_device_array(name, value, had)
        array = arguments.check_parameter(name, value, self._shape, self._of)
        if array.dtype != had.dtype:
            raise ValueError(
                f"{name} has dtype {array.dtype}, expected that of the layer, {had.dtype}; "
                f"{name}.astype(np.{had.dtype.name})"
            )
        return arguments.check_variance(name, array) if name == "running_var" else array

    def _checked_device_array(self, name: str, value: Any, had: Any) -> Any:
        """On a device no value is looked at: that would wait for it."""
        if self._device == "cpu" or not places.on_device(value):
            raise TypeError(
                f"the layer is on {self._device!r}, and {name} of type {type(value).__name__} is "
                "not; copy it there, or move the layer: bn.to('cpu'), bn.to('cuda')"
            )
        value = backend.as_numba(name, value, had)
        if (value.shape, value.dtype) != (self._shape, had.dtype):
            raise ValueError(
                f"{name} has shape {value.shape} and dtype {value.dtype}, expected "
                f"{self._shape} and {had.dtype}"
            )
        return value

    def _start(self, device: Device, dtype: DTypeLike | None, weight: bool, bias: bool) -> None:
        """Make the arrays, those that learn as they are asked for; in training mode."""
        self._device = self._checked_place(device)
        kind = settings.parameter_dtype(dtype)
        self.weight = self._zeros(kind) if weight else None
        self.bias = self._zeros(kind) if weight and bias else None
        self._start_measuring(kind)
        self._set_mode(training=True, frozen=False)
        self.reset_parameters()

    def _start_measuring(self, dtype: np.dtype) -> None:
        """Make the arrays that are measured."""

    def _zeros(self, dtype: np.dtype) -> Any:
        return backend.zeros(self._shape, dtype, self._device)

    # --- modes ------------------------------------------------------------------------------

    @property
    def training(self) -> bool:
        """Whether calls learn: they are remembered for `backward`, and running statistics move."""
        return self._in_training

    @training.setter
    def training(self, mode: bool) -> None:
        self.train(mode)

    def train(self: _Layer, mode: bool = True) -> _Layer:
        """Learn from now on: from each batch, where statistics are its own; returns the layer.

        Calls are remembered for `backward`. ``train(False)`` is `eval`.
        """
        return self._set_mode(settings.check_bool("mode", mode), self._frozen)

    def eval(self: _Layer) -> _Layer:
        """Serve from now on: with running statistics, where there are any; returns the layer."""
        return self.train(False)

    def _set_mode(self: _Layer, training: bool, frozen: bool) -> _Layer:
        self._training, self._frozen = training, frozen
        self._in_training = training and not frozen
        if not self._in_training:
            self._cache = None
        return self

    def _or_last(self, cache: Any) -> Any:
        """A cache, or that of the last training forward; RuntimeError if there is neither."""
        found = self._cache if cache is None else cache
        if found is None:
            raise RuntimeError(f"no training call to differentiate: {self._way_to_gradients}")
        return found

    @property
    def _way_to_gradients(self) -> str:
        """What to do where no training call is remembered."""
        return (
            "eval(), loading and resets forget the last one; call layer(x) in train() mode first, "
            "or, in evaluation too, y, cache = layer.forward_with_cache(x) and then "
            "layer.backward(dy, cache)"
        )

    # --- arrays -----------------------------------------------------------------------------

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, and running statistics as at the start."""
        self._fill({**self._LEARNS, **self._MEASURED})

    def _fill(self, values: dict[str, int]) -> None:
        arrays = self._arrays()
        names = [name for name in values if name in arrays]
        backend.assign_all([arrays[name] for name in names], [values[name] for name in names])
        self._cache = None

    def to(self: _Layer, device: Device) -> _Layer:
        """Move parameters and statistics to "cpu", "cuda" or "cuda:1"; returns the layer.

        The layer then takes arrays that lie there, and gives such.
        """
        place = self._checked_place(device)
        new = {
            name: backend.moved(array, place)
            for name, array in self._arrays().items()
            if name != "num_batches_tracked"  # is counted on the CPU, wherever the others are
        }
        self._device, self._cache = place, None
        for name, array in new.items():
            object.__setattr__(self, name, array)
        return self

    def _checked_place(self, device: Any) -> str:
        """Where the layer is to be; an error if it cannot be there."""
        place = settings.check_device(device)
        backend.require(place)
        return place

    def parameters(self) -> dict[str, np.ndarray]:
        """The arrays that learn, by name: ``weight`` and ``bias``, those that the layer has.

        They are the layer's own: changing them in place is a step of an optimizer. Their
        gradients have the same names in `Gradients.parameters`.

        Examples
        --------
        >>> import numpy as np, fastbn
        >>> bn = fastbn.BatchNorm1d(2)
        >>> y = bn(np.array([[1.0, 0.0], [3.0, 8.0]], np.float32))
        >>> gradients = bn.backward(np.ones_like(y)).parameters()
        >>> for name, parameter in bn.parameters().items():
        ...     parameter -= 0.1 * gradients[name]
        >>> bn.weight, bn.bias
        (array([1., 1.], dtype=float32), array([-0.2, -0.2], dtype=float32))
        """
        return {name: array for name, array in self._arrays().items() if name in self._LEARNS}

    def _arrays(self) -> dict[str, np.ndarray]:
        """Those that the layer has, by name."""
        found = {name: getattr(self, name) for name in (*self._LEARNS, *self._MEASURED)}
        return {name: array for name, array in found.items() if array is not None}

    def state_dict(self, prefix: str = "") -> dict[str, np.ndarray]:
        """Copies of parameters and running statistics under torch's names, to be kept or sent.

        Keys are ``weight``, ``bias``, ``running_mean``, ``running_var`` and
        ``num_batches_tracked`` (int64), those that the layer has, after ``prefix``.
        """
        return {prefix + name: backend.to_numpy(array) for name, array in self._arrays().items()}

    def load_state_dict(
        self, state: Mapping[str, Any], prefix: str = "", strict: bool = True
    ) -> IncompatibleKeys:
        """Load arrays under torch's names, all or nothing, into the layer's own arrays.

        The mode stays as it is: a layer that is to serve needs `eval` as well.

        Parameters
        ----------
        state : mapping of str to array
            NumPy arrays or what converts to them, such as torch's tensors, on a GPU as well.
            Where it has running statistics and no ``num_batches_tracked``, as files from before
            torch 0.4.1 and hand-made ones, the counter starts at 0.
        prefix : str
            What stands before the names, e.g. ``"layer1.0.bn1."``; keys without it
            are not looked at.
        strict : bool
            Raise if a key is missing or unexpected; otherwise load what matches.

        Returns
        -------
        IncompatibleKeys
            ``missing_keys`` and ``unexpected_keys``, both empty if ``strict``.

        Raises
        ------
        KeyError
            If keys are missing or unexpected and ``strict``. Nothing was loaded.
        ValueError
            If a value has the wrong shape, is not numeric, or is a negative or NaN
            running variance. Nothing was loaded.
        """
        arrays = self._arrays()
        values, incompatible = read_state(state, prefix, arrays, strict, self._HAS_NO)
        backend.assign_all([arrays[name] for name in values], values.values())
        self._cache = None
        return incompatible

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the last forward's cache, which refers to a whole batch.

        Arrays of a device are copied to host memory, and back when they are set.
        """
        arrays = {name: backend.to_numpy(array) for name, array in self._arrays().items()}
        return {**super().__getstate__(), **arrays, "_cache": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Give arrays NumPy's own dtype objects, quick to compare; pickle makes others."""
        state = dict(state)
        for name in (*self._LEARNS, *self._MEASURED):
            array = state[name]
            if array is not None:
                copy = state[name] = np.empty(array.shape, array.dtype.type)
                copy[...] = array
        place = state.setdefault("_device", "cpu")
        for name in (*self._LEARNS, *self._MEASURED):
            moves = place != "cpu" and name != "num_batches_tracked"
            if moves and state[name] is not None:
                state[name] = backend.moved(state[name], place)
        super().__setstate__(state)


#: Sets ``_cache`` without a look at its name, which would take a twentieth of a small call.
keep_cache = vars(Layer)["_cache"].__set__
