"""``fastbn warmup``."""

import argparse
import json
import time


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "warmup",
        help="compile kernels ahead, also into a folder for an image",
        description=(
            "Compile kernels now, so that no later process has to. --into fills a folder that you "
            "copy into an image, where the variable FASTBN_CACHE_DIR names it. --mode, --dtype and "
            "--layout may be given several times. Without them, everything is compiled that batch "
            "normalization of float32 and float64 needs (a quarter of a minute)."
        ),
        epilog=(
            "example: fastbn warmup --into /opt/fastbn-cache --mode evaluation --dtype float32 "
            "--layout channels_first --cpu x86-64-v3"
        ),
    )
    parser.add_argument(
        "--into", metavar="DIR", help="fill this folder; it is made if it is not there"
    )
    _several(parser, "--mode", "evaluation", "training", "statistics", "norms", "standardize")
    _several(parser, "--dtype", "float32", "float64", "float16", "bfloat16")
    _several(parser, "--layout", "channels_first", "channels_last")
    parser.add_argument(
        "--cpu",
        metavar="NAME",
        help="processor that will run the kernels: native (this machine's), generic (any of this "
        "architecture), x86-64-v3 (any with AVX2), x86-64-v4 (any with AVX-512), or another name "
        "that LLVM has, such as znver4. Default: this machine's, and kernels in the cache that run "
        "here are not compiled again",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the folder, the processor and the seconds as JSON",
    )
    parser.set_defaults(run=run, parser=parser)


def _several(parser: argparse.ArgumentParser, option: str, *choices: str) -> None:
    parser.add_argument(
        option, action="append", choices=choices, metavar=option.strip("-").upper(),
        help=", ".join(choices[:-1]) + f" or {choices[-1]}",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Compile, and say where the kernels are."""
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
