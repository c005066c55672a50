"""ONNX Runtime tells its maker nothing: it is read from one place, or told so by the runner, before it is loaded."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from multsd_export.profiles import RUNNERS

ROOT = Path(__file__).parents[3]
TELLING = {Path("export/multsd_export/onnx_runtime.py"), Path("export/multsd_export/runners/onnxruntime_runner.py")}
AS_TRITON = "import sys, types; sys.modules['triton_python_backend_utils'] = types.ModuleType('pb_utils'); "


@pytest.mark.parametrize("load", ["import multsd_export.parity", f"{AS_TRITON}import onnxruntime_runner"])
def test_nothing_is_written_below_home(load: str, tmp_path: Path) -> None:
    paths = [str(RUNNERS), str(ROOT / "export"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **{name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"},
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    subprocess.run([sys.executable, "-c", load], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


def test_nobody_else_loads_it() -> None:
    found = set()
    for folder in ("client", "docker", "export", "gateway", "model_repository", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            nodes = list(ast.walk(ast.parse(file.read_text())))
            modules = {each.name for node in nodes if isinstance(node, ast.Import) for each in node.names}
            modules |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
            if any(module.partition(".")[0] == "onnxruntime" for module in modules):
                found.add(file.relative_to(ROOT))
    assert found == TELLING
