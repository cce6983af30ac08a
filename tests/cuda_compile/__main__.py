"""Write the table of registers anew: ``python -m tests.cuda_compile``."""

from concurrent.futures import ProcessPoolExecutor

from tests.cuda_compile import compiling

if __name__ == "__main__":
    every = compiling.variants()
    with ProcessPoolExecutor() as pool:
        results = pool.map(compiling.compiled, every)
        compiling.record(
            {
                str(variant): {name: code.registers for name, code in result.items()}
                for variant, result in zip(every, results, strict=True)
            }
        )
    print(f"{len(every)} variants recorded")
