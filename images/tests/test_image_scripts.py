"""The scripts that run inside a build: splitting requirements, trimming ELF files, stubs for CUDA libraries."""

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
EXPORT = """# made by uv
aiohttp==3.14.5 \\
    --hash=sha256:aa
cuda-bindings==13.4.4 ; sys_platform == 'linux' \\
    --hash=sha256:bb
    # via torch
nvidia-cublas==13.1.1.3 ; sys_platform == 'linux' \\
    --hash=sha256:cc
nvidia-cuda-runtime==13.0.96 ; sys_platform == 'linux' \\
    --hash=sha256:dd
torch==2.14.1 \\
    --hash=sha256:ee
triton==3.8.0 \\
    --hash=sha256:ff
zipp==4.1.2 \\
    --hash=sha256:99
"""


def load(name: str) -> ModuleType:
    """A script as a module; it lies outside any package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def test_cuda_is_left_out_but_for_what_torch_calls_on_any_machine() -> None:
    files = load("requirements").split(EXPORT)
    assert [line for line in files["common.txt"].splitlines() if "==" in line] == [
        "aiohttp==3.14.5 \\",
        "zipp==4.1.2 \\",
    ]
    assert "sha256:99" in files["common.txt"]
    assert "nvidia-cuda-runtime" in files["torch.txt"]
    assert "nvidia-cublas" not in files["torch.txt"]
    assert files["torch-version.txt"] == "torch==2.14.1\n"


def test_an_export_without_torch_is_refused() -> None:
    with pytest.raises(SystemExit, match="no torch"):
        load("requirements").split("aiohttp==3 \\\n")


LIBRARY = """
#include <string.h>
__attribute__((section(".kernels"), used)) static const char kernels[] = { [0 ... 400000] = 7 };
static int counter = 41;
int touched(int at) { return kernels[at]; }
int count(void) { return ++counter; }
const char *name(void) { return "after the hole"; }
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A small shared library with a large read-only section."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "lib.c").write_text(LIBRARY)
    out = tmp_path / "lib.so"
    command = ["cc", "-shared", "-fPIC", "-g", "-Wl,--build-id,-z,separate-code,-z,max-page-size=4096"]
    subprocess.run([*command, "-o", out, tmp_path / "lib.c"], check=True, capture_output=True)
    return out


def test_a_section_is_cut_out_and_the_library_still_works(library: Path) -> None:
    elf_trim = load("elf_trim")
    before = library.stat().st_size
    segments = subprocess.run(["readelf", "-lW", library], check=True, capture_output=True, text=True).stdout
    if " R   0x1000" not in segments:
        pytest.skip("this linker puts read-only data elsewhere")
    saved = elf_trim.drop_section(library, ".kernels")
    assert saved > 300_000
    assert library.stat().st_size == before - saved
    loaded = ctypes.CDLL(str(library))
    loaded.name.restype = ctypes.c_char_p
    assert loaded.count() == 42
    assert loaded.name() == b"after the hole"
    assert loaded.touched(100_000) == 0, "the pages are there, as zeroes"


def test_a_section_that_is_not_there_is_said(library: Path) -> None:
    with pytest.raises(SystemExit, match=r"lib\.so: has no section \.nothing"):
        load("elf_trim").drop_section(library, ".nothing")


def test_a_writable_section_is_left_alone(library: Path) -> None:
    before = library.read_bytes()
    with pytest.raises(SystemExit):
        load("elf_trim").drop_section(library, ".data")
    assert library.read_bytes() == before


def test_a_stub_has_the_names_and_versions_and_fails_as_a_status(tmp_path: Path) -> None:
    if shutil.which("ld") is None:
        pytest.skip("needs binutils")
    load("elf_trim")
    cpu_torch = load("cpu_torch")
    path = tmp_path / "libcublas.so.13"
    cpu_torch.write_stub(path, path.name, {"cublasCreate_v2@libcublas.so.13", "cublasGetStatusString@libcublas.so.13"})
    assert cpu_torch.symbols(path, "--defined-only") >= {
        "cublasCreate_v2@libcublas.so.13",
        "cublasGetStatusString@libcublas.so.13",
    }
    program = (
        "import ctypes, sys; stub = ctypes.CDLL(sys.argv[1]); stub.cublasGetStatusString.restype = ctypes.c_char_p;"
        "print(stub.cublasCreate_v2()); print(stub.cublasGetStatusString().decode())"
    )
    done = subprocess.run([sys.executable, "-c", program, path], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("1\nrljob: cublasGetStatusString (libcublas.so.13)")
    assert "cublasCreate_v2 (libcublas.so.13) was called, yet this image holds torch for CPUs" in done.stderr
