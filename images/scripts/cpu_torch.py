"""Make PyPI's CUDA build of torch load on a machine, and in an image, without the CUDA libraries.

Run as `cpu_torch.py SITE_PACKAGES`, with binutils installed, before anything has imported torch.

`libtorch_cuda.so` names eleven CUDA libraries (1.9 GB) that the loader wants at `import torch`, though none of their
functions is ever called without a GPU. Each is replaced by a library of the same name whose functions, with the same
names and versions, say which was called and fail. Kept as they are: libcudart and libcupti, which torch does call on
any machine (to find out that there is no GPU). Removed: the parts that torch itself loads only on a GPU.
The kernels inside libtorch_cuda.so are removed too, see elf_trim.py.

Such a failure means that code asked for CUDA in the CPU image, which would be an error with any CPU build of torch.
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import elf_trim  # type: ignore[import-not-found]  # lies beside this file in the build stage

# Loaded by name when CUDA linear algebra or run-time compilation is first used; the profiler's count on a GPU.
GPU_ONLY = (
    "torch/lib/libtorch_cuda_linalg.so",
    "torch/lib/libcaffe2_nvrtc.so",
    "nvidia/cu13/lib/libnvperf_host.so*",
    "nvidia/cu13/lib/libnvperf_target.so*",
    "nvidia/cu13/lib/libcheckpoint.so*",
    "nvidia/cu13/lib/libpcsamplingutil.so*",
    "nvidia/cu13/lib/*.a",
    "nvidia/cu13/include",
)
CUDA_LIBRARY = re.compile(r"lib(cu|nv|nccl)\S*\.so\S*")

# %rdi holds a text, %rsi its length. A status that is not zero becomes an exception in torch; where an address is
# wanted (texts of errors aside, which get this one) there is nothing to return, so the process ends.
STUB_COMMON = """
    .text
.Lsay:
    pushq %rdi
    movq %rsi, %rdx
    movq %rdi, %rsi
    movl $2, %edi
    call write@plt
    popq %rdi
    ret
.Lstatus:
    subq $8, %rsp
    call .Lsay
    addq $8, %rsp
    movl $1, %eax
    ret
.Ltext:
    movq %rdi, %rax
    ret
.Labort:
    subq $8, %rsp
    call .Lsay
    call abort@plt
"""
GIVES_TEXT = re.compile(r".*(Error|Status)(String|Name)|.*GetLastError")
GIVES_ADDRESS = re.compile(r"nvshmem.*")


def output(*command: str | Path) -> str:
    """What a program printed."""
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


def needed(library: Path) -> list[str]:
    """Names of the libraries that a library wants loaded with it."""
    return re.findall(r"^\s*NEEDED\s+(\S+)", output("objdump", "-p", library), re.MULTILINE)


def version_owners(library: Path) -> dict[str, str]:
    """Symbol version -> the library it is wanted of."""
    owners: dict[str, str] = {}
    owner = ""
    for line in output("objdump", "-p", library).splitlines():
        if found := re.match(r"\s*required from (\S+):", line):
            owner = found[1]
        elif owner and (found := re.match(r"\s+0x[0-9a-f]+ 0x[0-9a-f]+ \d+ (\S+)", line)):
            owners[found[1]] = owner
        else:
            owner = ""
    return owners


def symbols(library: Path, which: str) -> set[str]:
    """Dynamic symbols as `name` or `name@VERSION`; `which` is nm's --undefined-only or --defined-only."""
    lines = output("nm", "-D", which, library).splitlines()
    return {line.split()[-1].replace("@@", "@") for line in lines}


def write_stub(path: Path, soname: str, wanted: set[str]) -> None:
    """Make a shared library that defines these symbols, each failing with its name."""
    versions: dict[str, list[str]] = defaultdict(list)
    lines = [STUB_COMMON]
    for index, symbol in enumerate(sorted(wanted)):
        name, _, version = symbol.partition("@")
        versions[version].append(name)
        text = f"rljob: {name} ({soname}) was called, yet this image holds torch for CPUs\\n"
        way = ".Ltext" if GIVES_TEXT.fullmatch(name) else ".Labort" if GIVES_ADDRESS.fullmatch(name) else ".Lstatus"
        lines += [
            f"    .globl {name}",
            f"    .type {name}, @function",
            f"{name}:",
            f"    leaq .Lname{index}(%rip), %rdi",
            f"    movq $.Lend{index} - .Lname{index} - 1, %rsi",
            f"    jmp {way}",
            f'    .section .rodata\n.Lname{index}: .asciz "{text}"\n.Lend{index}:\n    .text',
        ]
    lines.append('    .section .note.GNU-stack, "", @progbits')
    script = [f"{version} {{ global: {'; '.join(names)}; }};" for version, names in versions.items() if version]
    with tempfile.TemporaryDirectory() as folder:
        source, obj, map_file = (Path(folder) / name for name in ("stub.s", "stub.o", "stub.map"))
        source.write_text("\n".join(lines) + "\n")
        map_file.write_text("\n".join(script) + "\n")
        output("as", "-o", obj, source)
        flags: list[str | Path] = ["--version-script", map_file] if script else []
        output("ld", "-shared", "-soname", soname, *flags, "-o", path, obj)


def stub_libraries(site: Path) -> dict[str, int]:
    """Write a stub for each CUDA library that torch names and the folder lacks; name -> number of functions."""
    folder = site / "torch/lib"
    libraries = sorted(folder.glob("*.so*"))
    present = {file.name for file in site.glob("nvidia/**/*.so*")} | {file.name for file in libraries}
    missing = {name for file in libraries for name in needed(file) if CUDA_LIBRARY.fullmatch(name)} - present
    unversioned: set[str] = set()
    wanted: dict[str, set[str]] = {name: set() for name in missing}
    for file in libraries:
        owners = version_owners(file)
        for symbol in symbols(file, "--undefined-only"):
            version = symbol.partition("@")[2]
            if not version:
                unversioned.add(symbol)
            elif owners.get(version) in wanted:
                wanted[owners[version]].add(symbol)
    # A library without versions: what nobody else defines is its own. Which stub holds it makes no difference.
    defined = {symbol.partition("@")[0] for file in libraries for symbol in symbols(file, "--defined-only")}
    for file in site.glob("nvidia/**/*.so*"):
        defined |= {symbol.partition("@")[0] for symbol in symbols(file, "--defined-only")}
    orphans = {name for name in unversioned - defined if re.match(r"_?(cu|nv|nccl)", name)}
    for symbol in orphans:
        prefix = re.match(r"(cudnn|cufft|cublasLt|cublas|cusparseLt|cusparse|curand|cuFile|nccl|nvrtc|nvshmem)", symbol)
        stem = f"lib{prefix[1].lower()}" if prefix else ""
        home = next((name for name in sorted(missing) if name.lower().startswith(f"{stem}.")), min(missing))
        wanted[home].add(symbol)
    for name, functions in wanted.items():
        write_stub(folder / name, name, functions)
    return {name: len(functions) for name, functions in wanted.items()}


def remove_gpu_only(site: Path) -> None:
    """Delete what torch loads on a GPU alone."""
    for pattern in GPU_ONLY:
        for found in site.glob(pattern):
            if found.is_dir():
                output("rm", "-r", found)
            else:
                found.unlink()


def main() -> None:
    site = Path(sys.argv[1])
    if not (site / "torch/lib/libtorch_cuda.so").exists():
        print("cpu_torch: this torch is a CPU build already")
        return
    remove_gpu_only(site)
    for name, count in sorted(stub_libraries(site).items()):
        print(f"cpu_torch: {name}: {count} functions stubbed")
    saved = elf_trim.drop_section(site / "torch/lib/libtorch_cuda.so", ".nv_fatbin")
    print(f"cpu_torch: {saved >> 20} MiB of GPU kernels removed from libtorch_cuda.so")
    for section in (".strtab", ".symtab"):
        saved = elf_trim.drop_section(site / "torch/lib/libtorch_cpu.so", section)
        print(f"cpu_torch: {saved >> 20} MiB of {section} removed from libtorch_cpu.so")


if __name__ == "__main__":
    main()
