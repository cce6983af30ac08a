"""``fastbn warmup``."""

import argparse
import json
import time


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "warmup",
        help="compile kernels ahead, into a folder for an image if you like",
        description=(
            "Compile kernels now, so that no later process has to. With --into they go to a "
            "folder to be copied into an image, where FASTBN_CACHE_DIR names it. Each option "
            "but --into and --cpu may be given several times; without it all that batch "
            "normalization of float32 and float64 needs is compiled (a quarter of a minute)."
        ),
        epilog=(
            "example: fastbn warmup --into /opt/fastbn-cache --mode evaluation --dtype float32 "
            "--layout channels_first --cpu x86-64-v3"
        ),
    )
    parser.add_argument("--into", metavar="DIR", help="fill this folder, which is made if need be")
    _several(parser, "--mode", "evaluation", "training", "statistics", "norms", "standardize")
    _several(parser, "--dtype", "float32", "float64", "float16", "bfloat16")
    _several(parser, "--layout", "channels_first", "channels_last")
    parser.add_argument(
        "--cpu",
        metavar="NAME",
        help="whom for: native (this machine), generic (all of this architecture), x86-64-v3 "
        "(with AVX2), x86-64-v4 (with AVX-512) or another name that LLVM has, such as znver4; "
        "default: this machine, and what is there already and runs here is not compiled again",
    )
    parser.add_argument("--json", action="store_true", help="print what has been done as JSON")
    parser.set_defaults(run=run, parser=parser)


def _several(parser: argparse.ArgumentParser, option: str, *choices: str) -> None:
    parser.add_argument(
        option, action="append", choices=choices, metavar=option.strip("-").upper(),
        help=", ".join(choices[:-1]) + f" or {choices[-1]}",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Warm up, and say where the kernels are."""
    import fastbn
    from fastbn.environment import describe

    options = {"dtypes": arguments.dtype, "layouts": arguments.layout, "modes": arguments.mode}
    begun = time.perf_counter()
    try:
        fastbn.warmup(
            **{name: given for name, given in options.items() if given},
            into=arguments.into, cpu=arguments.cpu,
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        arguments.parser.exit(2, f"fastbn warmup: error: {error}\n")
    seconds = round(time.perf_counter() - begun, 1)
    folder = arguments.into or next(
        (cache["path"] for cache in describe()["caches"] if cache["written"]), None
    )
    if arguments.json:
        done = {"folder": folder, "cpu": arguments.cpu or "native", "seconds": seconds}
        print(json.dumps(done))
    else:
        kept = f"kernels are in {folder}" if folder else "they are kept nowhere"
        print(f"compiled in {seconds} s; {kept}")
