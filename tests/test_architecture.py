"""The invariants of the README: each is an absence, and each would be found if it appeared."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = [p for folder in ("flows", "tasks", "storage") for p in sorted((ROOT / folder).rglob("*.py"))]
OPENERS = {"open", "read_text", "write_text", "read_bytes", "write_bytes", "read_table", "write_table", "ParquetFile",
           "ParquetWriter", "safe_open", "save_file", "load_file", "from_pretrained"}  # fmt: skip


def calls(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {n.id if isinstance(n, ast.Name) else n.attr for n in names if isinstance(n, (ast.Name, ast.Attribute))}


def test_the_import_contracts_hold():
    found = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout[-3000:]


def test_only_storage_opens_files():
    offenders = {
        str(path.relative_to(ROOT)): sorted(calls(path) & OPENERS)
        for path in CODE
        if "storage" not in path.relative_to(ROOT).parts[:1] and calls(path) & OPENERS
    }
    assert offenders == {}


def test_only_capture_registers_hooks():
    hooks = {"register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook", "register_hook"}
    offenders = [str(p.relative_to(ROOT)) for p in CODE if calls(p) & hooks]
    assert offenders == ["tasks/influence/capture.py"]


def test_only_flows_and_stages_know_prefect():
    offenders = [
        str(p.relative_to(ROOT))
        for p in CODE
        if re.search(r"^\s*(from|import) prefect", p.read_text(encoding="utf-8"), re.M)
        and (p.parent not in (ROOT / "flows", ROOT / "tasks"))
    ]
    assert offenders == []


def test_sql_names_relations_never_paths():
    offenders = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "sql").rglob("*.sql")
        if re.search(r"read_(parquet|csv|json)|\.parquet|'/", path.read_text(encoding="utf-8"))
    ]
    assert offenders == []


def test_every_statement_says_its_grain_first():
    offenders = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "sql").rglob("*.sql")
        if not re.match(r"-- (grain|offending rows): \S", path.read_text(encoding="utf-8"))
    ]
    assert offenders == []


def test_every_file_says_its_role_in_its_first_line():
    silent = [str(p.relative_to(ROOT)) for p in CODE if not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))]
    assert silent == []


@pytest.mark.parametrize("name", ["prefect", "dask", "distributed", "duckdb", "pyarrow", "pydantic", "storage"])
def test_importing_the_numerics_does_not_load(name):
    program = (
        "import importlib, pkgutil, sys, tasks.influence as package\n"
        "for m in pkgutil.iter_modules(package.__path__): importlib.import_module(f'tasks.influence.{m.name}')\n"
        f"sys.exit({name!r} in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_no_dependency_reports_home_by_default():
    program = (
        "import os\n[os.environ.pop(n, None) for n in ('DO_NOT_TRACK', 'HF_HUB_DISABLE_TELEMETRY')]\n"
        "import flows\nfrom huggingface_hub import constants\n"
        "import prefect\nfrom prefect.settings import get_current_settings\n"
        "assert os.environ['DO_NOT_TRACK'] == '1'\n"
        "assert constants.HF_HUB_DISABLE_TELEMETRY\n"
        "assert not get_current_settings().server.analytics_enabled\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
