"""Features of a processor by its name, for compiling code that another machine will run."""

import os
import re
import subprocess
import sys
from functools import cache

import llvmlite.binding as llvm
from numba.core.codegen import get_host_cpu_features

#: Features whose instructions a compiler writes only if a program names them, as kernels never do.
#: Virtual machines hide many of them. They are switched off: code then runs where they are hidden.
_BY_NAME_ONLY = re.compile(
    "amx.*|cldemote|clflushopt|clwb|clzero|enqcmd|fsgsbase|hreset|invpcid|kl|lwp|movdir.*|mwaitx|"
    "pconfig|pku|prfchw|ptwrite|rdpid|rdpru|rdrnd|rdseed|rtm|serialize|sgx|shstk|tsxldtrk|uintr|"
    "usermsr|waitpkg|wbnoinvd|widekl|xsavec|xsaveopt|xsaves"
)
_ASKED = "from fastbn.kernels.processors import print_features; print_features()"


@cache
def features_of(name: str) -> str:
    """All features of a processor, on or off, as `NUMBA_CPU_FEATURES` takes them.

    ValueError if LLVM does not know the processor. LLVM would end the process that asks for code
    for an unknown one, so a child process asks.
    """
    if name == "native":
        return get_host_cpu_features()
    if name == "generic":  # what every processor of this architecture has
        return ""
    if (
        isinstance(name, str)
        and "x86_64" in llvm.get_process_triple()
        and re.fullmatch(r"[\w.-]+", name)
    ):
        command = [sys.executable, "-W", "ignore", "-c", _ASKED, name]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode == 0 and "not a recognized" not in done.stderr:
            return done.stdout.strip()
    raise ValueError(
        'cpu must be "native", "generic" or the name that LLVM has for an x86 processor, such as '
        f'"x86-64-v3" (with AVX2), "x86-64-v4" (with AVX-512) or "znver4", got {name!r}'
    )


def print_features() -> None:
    """What the child process does.

    It mentions every feature that LLVM knows, so that none depends on the processor's name.
    """
    on = {each for each in implied(sys.argv[1]) if not _BY_NAME_ONLY.fullmatch(each)}
    every = sorted(llvm.get_host_cpu_features(), key=lambda each: (each not in on, each))
    print(",".join(("+" if each in on else "-") + each for each in every))


def implied(name: str) -> list[str]:
    """The features that LLVM uses for a processor of this name, of all that it knows.

    LLVM has no call that lists them. But it inlines a function only into a caller that has all of
    the function's features. So here is a function for each feature, and a caller that has the
    processor's name: what was inlined, the processor has.
    """
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    triple, features = llvm.get_process_triple(), sorted(llvm.get_host_cpu_features())
    lines = [f'target triple = "{triple}"', f'attributes #0 = {{ "target-cpu"="{name}" }}']
    for k, feature in enumerate(features, 1):
        has = f'"target-cpu"="generic" "target-features"="+{feature}"'
        lines += [
            f"attributes #{k} = {{ {has} }}",
            f"define internal i32 @has{k}(i32 %x) #{k} {{ %y = mul i32 %x, {k + 2}\n ret i32 %y }}",
            f"define i32 @asks{k}(i32 %x) #0 {{ %y = call i32 @has{k}(i32 %x)\n ret i32 %y }}",
        ]
    module = llvm.parse_assembly("\n".join(lines))
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=name, features="")
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    builder.getModulePassManager().run(module, builder)
    bodies = {each.name: str(each) for each in module.functions}
    return [each for k, each in enumerate(features, 1) if "call " not in bodies[f"asks{k}"]]
