"""The promise that deployment needs no PyTorch: fresh interpreters that import every module."""

import os
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import vlp_deploy

HEAVY = {"torch", "open_clip", "onnx", "onnx_ir", "vlp_train", "vlp_export"}
ENTRY_POINT = "vlp_deploy.__main__"  # runs the command line when imported


def modules_of(package: ModuleType) -> list[str]:
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return sorted(module.name for module in found if module.name != ENTRY_POINT)


def imported_after(statement: str) -> set[str]:
    """Top-level modules loaded by `statement` in a fresh interpreter that sees the same code."""
    program = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return set(done.stdout.split())


def test_runtime_modules_import_nothing_heavy() -> None:
    loaded = imported_after("\n".join(f"import {module}" for module in modules_of(vlp_deploy)))

    assert {"vlp_deploy", "numpy"} <= loaded
    assert loaded.isdisjoint(HEAVY)


def test_export_imports_no_torch() -> None:
    vlp_export = pytest.importorskip("vlp_export", reason="the export extra is not installed")

    modules = modules_of(vlp_export)
    loaded = imported_after("\n".join(f"import {module}" for module in modules))

    assert "vlp_export.command" in modules
    assert {"vlp_export", "onnx_ir"} <= loaded
    assert loaded.isdisjoint({"torch", "open_clip", "vlp_train"})


def test_the_check_itself_can_fail() -> None:
    pytest.importorskip("torch")

    assert "torch" in imported_after("import vlp_train.clip")
