"""What a processor has that LLVM knows by name, for who compiles for another machine."""

import os
import re
import subprocess
import sys
from functools import cache

import llvmlite.binding as llvm
from numba.core.codegen import get_host_cpu_features

#: Features for which no compiler writes an instruction unless a program asks for it by name.
#: Virtual machines hide many of them. They are switched off, so that nobody need have them.
_BY_NAME_ONLY = re.compile(
    "amx.*|cldemote|clflushopt|clwb|clzero|enqcmd|fsgsbase|hreset|invpcid|kl|lwp|movdir.*|mwaitx|"
    "pconfig|pku|prfchw|ptwrite|rdpid|rdpru|rdrnd|rdseed|rtm|serialize|sgx|shstk|tsxldtrk|uintr|"
    "usermsr|waitpkg|wbnoinvd|widekl|xsavec|xsaveopt|xsaves"
)
_ASKED = "from fastbn.kernels.processors import print_features; print_features()"


@cache
def features_of(name: str) -> str:
    """Features of a processor as `NUMBA_CPU_FEATURES` takes them; ValueError if it is not known.

    LLVM ends a process that asks it for the code of a processor it does not know. So another asks.
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
    """What that process does."""
    found = implied(sys.argv[1])
    off = [each for each in found if _BY_NAME_ONLY.fullmatch(each)]
    print(",".join([f"+{each}" for each in found if each not in off] + [f"-{e}" for e in off]))


def implied(name: str) -> list[str]:
    """The features that code for a processor may use, of all that a program can ask for here.

    LLVM has no call that tells. But it puts a function into its caller only if that has all
    features that the function has: so there is one for each, and a caller that has the name.
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
