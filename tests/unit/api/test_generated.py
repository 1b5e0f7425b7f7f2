"""The committed stubs: current, importable together, and typed by their real names."""

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]
GEN = CHECKOUT / "kuasar" / "api" / "gen"


def tree(root: Path) -> dict[str, bytes]:
    """Every source file below `root` by its relative path."""
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.suffix in {".py", ".pyi"}
    }


def test_stubs_are_current(tmp_path: Path) -> None:
    script = CHECKOUT / "scripts" / "gen_proto.py"
    subprocess.run([sys.executable, str(script), "--root", str(tmp_path)], check=True, timeout=120)
    fresh, committed = tree(tmp_path / "kuasar" / "api" / "gen"), tree(GEN)
    assert sorted(fresh) == sorted(committed), "files differ: run `make proto`"
    stale = [name for name, text in fresh.items() if committed[name] != text]
    assert stale == [], "run `make proto`"


def test_all_modules_share_one_descriptor_pool() -> None:
    """A second description of any name makes the import fail; a fresh process shows it, whatever ran before."""
    modules = [
        ".".join(path.relative_to(CHECKOUT).with_suffix("").parts)
        for path in sorted(GEN.rglob("*.py"))
        if path.name != "__init__.py"
    ]
    assert len(modules) >= 23
    program = f"import importlib\nfor name in {modules!r}: importlib.import_module(name)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=CHECKOUT, timeout=120)
    assert result.returncode == 0, result.stderr
