"""The report of what is here, and the switch for memory reuse."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch

import sedd_fast as sf
from sedd_fast import environment
from sedd_fast.backends import cpp, registry

HEAVY = ("rich", "typer", "omegaconf", "matplotlib", "accelerate", "datasets", "tokenizers",
         "transformers", "tensorboard", "huggingface_hub")  # fmt: skip


def backends(report, kind="cpu"):
    device = next(device for device in report.devices if device.kind == kind)
    return {backend.name: backend for backend in device.backends}


def run_python(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True,
        check=True,
    ).stdout.strip()  # fmt: skip


def test_report_names_versions_and_threads():
    report = sf.info()
    assert report.versions["torch"] == torch.__version__
    assert report.versions["sedd_fast"] == sf.__version__
    assert report.threads == torch.get_num_threads()
    for word in (torch.__version__, "cpu", "backend reference", "memory", report.system):
        assert word in str(report)


def test_report_is_json():
    record = json.loads(json.dumps(sf.info().as_dict()))
    assert record["devices"][0]["kind"] == "cpu"
    assert {"name", "available", "chosen", "reason"} == set(record["devices"][0]["backends"][0])


def test_chosen_backend_is_the_one_that_runs():
    chosen = [name for name, backend in backends(sf.info()).items() if backend.chosen]
    assert chosen == [registry.choose("cpu")]
    with sf.use_backend("reference"):
        report = sf.info()
    assert report.requested == "reference"
    assert [n for n, b in backends(report).items() if b.chosen] == ["reference"]
    assert "requested" in str(report)


def test_missing_compiled_module_is_reported(monkeypatch):
    monkeypatch.setattr(cpp, "unavailable", lambda: "it was never built")
    report = sf.info()
    cpp_backend = backends(report)["cpp"]
    assert not cpp_backend.available
    assert "never built" in str(cpp_backend.reason)
    assert backends(report)["reference"].chosen
    assert (report.instruction_set, report.pool) == (None, None)
    assert "it was never built" in str(report)


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("model name\t: Intel(R) Xeon(R) Platinum 8481C\ncpu family\t: 6\nmodel\t\t: 143\n",
         "Intel(R) Xeon(R) Platinum 8481C"),
        ("cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nmodel\t\t: 1\n",
         "AMD EPYC (family 25, model 17)"),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd40\n", "aarch64 (implementer 0x41, part 0xd40)"),
        ("", "aarch64"),
    ],
)  # fmt: skip
def test_a_vague_name_of_a_processor_gets_its_numbers(monkeypatch, cpuinfo, name):
    monkeypatch.setattr(environment.Path, "read_text", lambda *_, **__: cpuinfo)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert environment.processor_name() == name


@pytest.mark.skipif(cpp.unavailable() is not None, reason="no C++ kernels")
def test_instruction_set_is_one_that_was_built():
    assert sf.info().instruction_set in ("avx512_bf16", "avx512", "avx2", "baseline")
    assert sf.info().pool in ("shared OpenMP", "own")


@pytest.mark.skipif(
    cpp.unavailable() is not None or platform.libc_ver()[0] != "glibc", reason="needs glibc"
)
def test_memory_reuse_keeps_pages():
    """After some rounds of allocations a tensor of the same size takes no new pages."""
    code = """
import resource, torch, sedd_fast as sf
assert not sf.info().memory_reuse
assert sf.reuse_memory()
assert sf.info().memory_reuse
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for i in range(64):  # it takes effect when the large free blocks are split as needed
    if i == 60:
        before = faults()
    torch.ones(20_000_000)
print(faults() - before)
"""
    clean = {"MALLOC_MMAP_MAX_": "65536", "OMP_NUM_THREADS": "1"}
    pages = 80_000_000 // 4096
    assert int(run_python(code, **clean)) < pages // 2  # of the 4 * pages that it takes without


def test_import_is_light():
    loaded = run_python(f"import sys, sedd_fast; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert loaded == "[]"
