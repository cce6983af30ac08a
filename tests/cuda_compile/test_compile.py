"""What NVIDIA's compilers make of every kernel, seen without a GPU."""

import importlib.util
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from numba import config


def missing():
    """What there is not, of all that compiling takes."""
    if config.ENABLE_CUDASIM:
        return "a target other than the simulator (NUMBA_ENABLE_CUDASIM)"
    for package in "numba_cuda", "nvidia.cu13", "cuda.bindings.nvjitlink":
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:  # not even the package that it is in
            found = None
        if found is None:
            return package
    return None


# before anything is collected: pytest then fails where these are the only tests, as with tox
if missing():
    pytest.skip(f"needs {missing()}: tox -e cuda-compile", allow_module_level=True)

from tests.cuda_compile import compiling  # noqa: E402

ALL = compiling.variants()
#: Registers of a multiprocessor.
REGISTERS = 65536
#: What reads and writes so many values at once; 16-bit ones may be halves of words.
AT_ONCE = {("float32", 4): r"v4\.[fbu]32", ("float64", 2): r"v2\.[fbu]64"}
AT_ONCE |= {(kind, 8): r"v4\.[bu]32" for kind in ("float16", "bfloat16")}
AT_ONCE |= {(kind, 4): r"v(?:2\.[bu]32|4\.[bu]16)" for kind in ("float16", "bfloat16")}
#: One 16-bit value.
SINGLE = r"(?:(?!v[24]\.)[\w:]+\.)*[fbu]16\b"

every_variant = pytest.mark.parametrize("variant", ALL, ids=str)


@pytest.fixture(scope="module")
def codes(request):
    """Results to come, by variant: those that are asked for, compiled on all processors."""
    asked = {i.callspec.params["variant"] for i in request.session.items if "[" in i.name}
    # threads of the compilers would not live through a fork
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        yield {v: pool.submit(compiling.compiled, v) for v in ALL if v in asked}


@pytest.fixture
def code(codes, variant):
    return codes[variant].result()


@every_variant
def test_a_thread_has_registers_for_everything(code):
    assert {name: (one.stack, one.spilled) for name, one in code.items()} == dict.fromkeys(
        code, (0, 0)
    )
    for one in code.values():
        assert not re.search(r"\b(ld|st)\.local\b", one.ptx)
        assert 2 * compiling.THREADS * one.registers <= REGISTERS  # two blocks at a time


@every_variant
def test_registers_are_those_recorded(code, variant):
    """Or fewer. Where more are meant to be: ``python -m tests.cuda_compile``, and say why."""
    for name, one in code.items():
        assert one.registers <= compiling.recorded()[str(variant)][name]


def test_the_table_has_every_variant():
    assert list(compiling.recorded()) == list(map(str, ALL))


def test_every_layout_is_read_sixteen_bytes_at_once():
    """But for 16-bit values with channels last, where a thread keeps them: those by 8."""
    most = {}
    for v in ALL:
        key = v.dtype, v.design, v.width > 1
        most[key] = max(most.get(key, 0), v.lanes * compiling.bytes_of(v))
    fewer = {(kind, "once", True) for kind in ("float16", "bfloat16")}
    assert most == {key: 8 if key in fewer else 16 for key in most}
    assert len(most) == 4 * 3 * 2


@pytest.mark.parametrize("variant", [v for v in ALL if v.lanes > 1], ids=str)
def test_values_are_read_and_written_at_once(code, variant):
    arguments = compiling.arguments_of(variant.design, variant.kernel)
    kind = AT_ONCE[variant.dtype, variant.lanes]
    for one in code.values():
        reads = re.findall(rf"\bld\.global\.(?:[\w:]+\.)*{kind}", one.ptx)
        assert len(reads) >= len({"x", "dy"} & set(arguments))
        writes = "out" in arguments or variant.extra.residual  # whose gradient sums write
        assert bool(re.search(rf"\bst\.global\.(?:\w+\.)*{kind}", one.ptx)) == writes
        # parameters are wider, so this is of x; the shift of its sums is a single value
        assert len(re.findall(rf"\bld\.global\.{SINGLE}", one.ptx)) <= 1
        assert not re.search(rf"\bst\.global\.{SINGLE}", one.ptx)


@every_variant
def test_results_are_the_same_from_run_to_run(code):
    for one in code.values():
        assert not re.search(r"\b(atom|red)\.[\w.]*f(16|32|64)", one.ptx)


@every_variant
def test_arithmetic_is_that_of_the_cpu(code, variant):
    """Tiny numbers are not zero, and quotients and roots are rounded correctly.

    But for the last step of NVIDIA's float32 exponential, which is right to two of the last digits
    and 0 below 1e-38.
    """
    for one in code.values():
        found = re.findall(r"\w+\.[\w.]*\b(?:ftz|approx|full)\b[\w.]*", one.ptx)
        assert set(found) <= ({"ex2.approx.ftz.f32"} if variant.extra.activation else set())
