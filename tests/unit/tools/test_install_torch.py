"""Which build of torch `make` installs."""

from __future__ import annotations

import pytest

import install_torch
from install_torch import CPU_INDEX, VERSION, Machine, choose


def never() -> bool:
    raise AssertionError("this probe was not needed")


def machine(
    *, linux: bool = True, installed: str = "", local_wheel: bool = False, nvidia_driver: bool = False
) -> Machine:
    return Machine(linux, installed, lambda: local_wheel, lambda: nvidia_driver)


def test_a_linux_machine_without_a_gpu_gets_the_cpu_build_from_pytorchs_index() -> None:
    """The pin ends in +cpu, so that no index can answer with the CUDA build."""
    step = choose("auto", machine(), CPU_INDEX)
    assert f"torch=={VERSION}+cpu" in step.pip
    assert step.pip[step.pip.index("--index-url") + 1] == CPU_INDEX


def test_the_cpu_index_is_a_setting() -> None:
    """A mirror is asked instead of pytorch.org, and a failure names it together with the ways out."""
    step = choose("auto", machine(), "https://mirror.example/cpu")
    assert "https://mirror.example/cpu" in step.pip
    for word in ("https://mirror.example/cpu", "PYTORCH_INDEX", "PIP_FIND_LINKS", "TORCH=cuda"):
        assert word in step.on_failure


def test_a_machine_with_an_nvidia_driver_gets_the_cuda_build_and_is_told_its_size() -> None:
    """The CUDA build comes from the plain index, and no +cpu wheel can stand in for it."""
    step = choose("auto", machine(nvidia_driver=True), CPU_INDEX)
    assert step.pip == (f"torch==={VERSION}",)
    assert "GB" in step.say


def test_a_wheel_that_pip_is_configured_to_find_comes_before_everything_else() -> None:
    """On a machine without network no index is asked."""
    step = choose("auto", Machine(True, "", lambda: True, never), CPU_INDEX)
    assert "--no-index" in step.pip


def test_another_system_gets_its_own_build_without_asking_for_a_gpu() -> None:
    """On macOS PyPI's build is the CPU build."""
    step = choose("auto", Machine(False, "", lambda: False, never), CPU_INDEX)
    assert step.pip == (f"torch=={VERSION}",)


@pytest.mark.parametrize("nvidia_driver", [False, True])
def test_a_forced_build_is_what_is_installed(nvidia_driver: bool) -> None:
    """TORCH=cpu and TORCH=cuda win over what the machine has."""
    here = machine(local_wheel=True, nvidia_driver=nvidia_driver)
    assert f"torch=={VERSION}+cpu" in choose("cpu", here, CPU_INDEX).pip
    assert choose("cuda", here, CPU_INDEX).pip == (f"torch==={VERSION}",)


@pytest.mark.parametrize("wheel", ["./torch-2.13.0-cp311-none-any.whl", "https://example.org/torch.whl"])
def test_a_wheel_by_path_or_address_is_handed_to_pip(wheel: str) -> None:
    """Whatever the user names is what pip gets."""
    assert choose(wheel, machine(installed=VERSION), CPU_INDEX).pip == (wheel,)


@pytest.mark.parametrize(
    ("torch", "installed", "kept"),
    [
        ("auto", "2.13.0+cpu", True),
        ("auto", "2.13.0", True),
        ("cpu", "2.13.0+cpu", True),
        ("cpu", "2.13.0", False),
        ("cuda", "2.13.0", True),
        ("cuda", "2.13.0+cpu", False),
        ("auto", "2.12.1+cpu", False),
    ],
)
def test_a_torch_that_fits_is_kept(torch: str, installed: str, kept: bool) -> None:
    """Nothing is downloaded twice, and another version or build is replaced."""
    assert (choose(torch, machine(installed=installed), CPU_INDEX).pip == ()) is kept


def test_a_failed_installation_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The exit status is 1 and the message names the settings."""
    monkeypatch.setattr(install_torch, "this_machine", lambda run: machine())
    monkeypatch.setattr(install_torch, "_PIP", ("false",))
    assert install_torch.main([]) == 1
    assert "PIP_FIND_LINKS" in capfd.readouterr().err
