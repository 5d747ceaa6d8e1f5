"""What setup.py decides to build, with programs on the PATH that pretend to be nvcc and nvidia-smi."""

import os
import subprocess
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

setuptools = pytest.importorskip("setuptools")

ALL = "75;80;86;89;90;100;120"  # those of setup.py that the nvcc below knows
NVCC = "echo compute_75 compute_80 compute_86 compute_89 compute_90 compute_100 compute_120"


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Write programs for the PATH, which holds nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for name in ("JOURNEY_CUDA", "JOURNEY_CUDA_ARCHS", "CUDACXX"):
        monkeypatch.delenv(name, raising=False)

    def write(**scripts: str) -> Path:
        for name, script in scripts.items():
            program = folder / name.replace("_", "-")
            program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
            program.chmod(0o755)
        return folder

    return write


@pytest.fixture
def build(monkeypatch, tmp_path):
    """Build with a CMake that only takes notes, and return what it was told in each attempt; fails as it is told to."""
    path = Path(__file__).parents[1] / "setup.py"
    spec = spec_from_file_location("journey_setup", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    command = module.CMakeBuild(setuptools.Distribution({"name": "journey", "version": "1"}))
    command.build_lib, command.build_temp = str(tmp_path / "lib"), str(tmp_path / "temp")
    run = subprocess.run

    def build(fails=lambda call: False):
        attempts = []

        def run_or_note(call, **options):
            if call[0] != "cmake":
                return run(call, **options)
            if "-S" in call:
                attempts.append(dict(word[2:].split("=", 1) for word in call if str(word).startswith("-D")))
            if attempts[-1]["JOURNEY_CUDA"] == "ON" and fails(call):
                raise subprocess.CalledProcessError(1, call)
            return None

        monkeypatch.setattr(subprocess, "run", run_or_note)
        command.build_extension(setuptools.Extension("journey.ops._native", sources=[]))
        return attempts

    return build


def test_without_nvcc_it_builds_for_the_cpu_and_says_so(programs, build):
    programs()
    (told,) = build()
    assert told["JOURNEY_CUDA"] == "OFF"
    assert told["JOURNEY_CUDA_OFF_REASON"] == "nvcc was not found when the package was built"


def test_cuda_can_be_switched_off(programs, build, monkeypatch):
    programs(nvcc=NVCC)
    monkeypatch.setenv("JOURNEY_CUDA", "off")
    (told,) = build()
    assert told["JOURNEY_CUDA_OFF_REASON"] == "built with JOURNEY_CUDA=off"


@pytest.mark.parametrize(
    ("nvcc", "fails"),
    [
        ("exit 1", lambda call: False),
        (NVCC, lambda call: "-S" in call),
        (NVCC, lambda call: "--build" in call),
    ],
    ids=["it does not run", "it compiles nothing", "it cannot compile a kernel"],
)
def test_an_nvcc_that_fails_leaves_the_cpu_and_says_so_or_fails_where_cuda_is_on(
    nvcc, fails, programs, build, monkeypatch, capfd
):
    programs(nvcc=nvcc)
    told = build(fails)[-1]
    assert told["JOURNEY_CUDA"] == "OFF"
    reason = told["JOURNEY_CUDA_OFF_REASON"]
    assert reason.startswith("nvcc failed when the package was built")
    assert reason in capfd.readouterr().out
    assert not set(reason) & set(';"\\$'), "CMake and the compiler would not take it as it is"
    monkeypatch.setenv("JOURNEY_CUDA", "on")
    with pytest.raises(subprocess.CalledProcessError):
        build(fails)


def test_where_cuda_is_on_a_missing_nvcc_is_an_error(programs, build, monkeypatch):
    programs()
    monkeypatch.setenv("JOURNEY_CUDA", "on")
    with pytest.raises(FileNotFoundError, match="nvcc was not found: install the CUDA toolkit"):
        build()


def test_another_word_is_refused(build, monkeypatch):
    monkeypatch.setenv("JOURNEY_CUDA", "yes")
    with pytest.raises(ValueError, match="JOURNEY_CUDA must be auto, on or off, got 'yes'"):
        build()


@pytest.mark.parametrize(
    ("asked", "smi", "architectures"),
    [
        ("", None, "80;90"),
        ("", "printf '9.0\\n8.6\\n9.0\\n'", "86;90"),
        ("", "echo 12.0", "120"),
        ("", "echo 6.1", "80;90"),  # no kernels
        ("", "echo 13.0", "80;90"),  # nvcc is older
        ("", "exit 9", "80;90"),  # no driver
        ("all", "echo 9.0", ALL),
        ("80,86", "echo 9.0", "80;86"),
    ],
)
def test_kernels_are_compiled_for_the_gpus_here_or_for_two_architectures(
    asked, smi, architectures, programs, build, monkeypatch
):
    programs(nvcc=NVCC, **({"nvidia_smi": smi} if smi else {}))
    monkeypatch.setenv("JOURNEY_CUDA_ARCHS", asked)
    (told,) = build()
    assert told["JOURNEY_CUDA_ARCHS"] == architectures


def test_nvcc_can_be_given_by_its_path(programs, build, monkeypatch):
    folder = programs(nvcc=NVCC)
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setenv("CUDACXX", str(folder / "nvcc"))
    assert build()[0]["JOURNEY_CUDA"] == "ON"
