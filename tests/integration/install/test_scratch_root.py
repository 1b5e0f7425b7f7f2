"""An installation in a scratch root, which the real containerd looks at before anything is written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kuasar.cli.ctl.main import main
from kuasar.core import failpoints
from kuasar.core.config import Config
from scripts.layout import CONTAINERD_BIN

PROGRAM = f"{CONTAINERD_BIN}/containerd"
CONFIG, DROP_IN = "etc/containerd/config.toml", "etc/containerd/conf.d/kuasar.toml"
OURS = set(Config().sandboxers)
V2 = """\
version = 2
[plugins."io.containerd.grpc.v1.cri".containerd]
  default_runtime_name = "crun"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun]
  runtime_type = "io.containerd.runc.v2"
"""
V3 = """\
# the operator's
version = 3
imports = ["/etc/containerd/theirs/*.toml"] # theirs
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["/usr/lib/cni"]
"""
pytestmark = pytest.mark.skipif(not os.path.exists(PROGRAM), reason="containerd is not here (make install)")


class Root:
    """A scratch root and what is done in it."""

    def __init__(self, path: Path) -> None:
        self.path = path / "root"
        self.path.mkdir()

    def write(self, name: str, text: str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def ctl(self, *words: str, code: int = 0) -> Result:
        done = CliRunner().invoke(main, [words[0], "--root", str(self.path), *words[1:]])
        assert done.exit_code == code, done.output
        return done

    def install(self, *options: str, program: str = PROGRAM, code: int = 0) -> Result:
        return self.ctl("install", "--containerd", program, *options, code=code)

    def tree(self) -> dict[str, tuple[int, bytes | str]]:
        """Everything below it: mode, and content or target."""
        found: dict[str, tuple[int, bytes | str]] = {}
        for path in sorted(self.path.rglob("*")):
            content = os.readlink(path) if path.is_symlink() else b"" if path.is_dir() else path.read_bytes()
            found[str(path.relative_to(self.path))] = (path.lstat().st_mode, content)
        return found

    def dump(self) -> dict[str, Any]:
        """What a containerd that is started on this root would understand."""
        text = (self.path / CONFIG).read_text().replace('"/etc/', f'"{self.path}/etc/')
        copy = self.path.parent / "config.toml"
        copy.write_text(text)
        done = subprocess.run([PROGRAM, "-c", str(copy), "config", "dump"], capture_output=True, text=True, check=True)
        return tomllib.loads(done.stdout)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


def runtimes(dump: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = dump["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]
    return found


@pytest.mark.parametrize("text", [None, "", "version = 3\n", V2, V3], ids=["absent", "empty", "short", "v2", "v3"])
def test_there_and_back(root: Root, text: str | None) -> None:
    if text is not None:
        root.write(CONFIG, text).chmod(0o640)
    root.write("etc/containerd/theirs/a.toml", "version = 3\noom_score = -7\n")
    before = root.tree()
    shown = json.loads(root.install("--dry-run", "--json").stdout)
    assert shown["changed"] is True
    assert root.tree() == before
    root.install()
    dump = root.dump()
    assert {name: runtimes(dump)[name]["sandboxer"] for name in OURS} == {name: name for name in OURS}
    addresses = {name: each["address"] for name, each in dump["proxy_plugins"].items()}
    assert addresses == dict.fromkeys(OURS, "/run/kuasar/gateway.sock")
    if text == V2:
        assert "crun" in runtimes(dump)
    if text == V3:
        assert dump["oom_score"] == -7
    installed = root.tree()
    assert root.install().stdout == "nothing to do: all of it is installed\n"
    assert root.tree() == installed
    assert {each["path"] for each in shown["changes"]} | {"/var/lib/kuasar/install.json"} == {
        f"/{name}" for name in installed if (name not in before and not (root.path / name).is_dir()) or name == CONFIG
    }
    root.ctl("uninstall", "--dry-run")
    assert root.tree() == installed
    root.ctl("uninstall")
    assert root.tree() == before
    root.ctl("uninstall", code=3)


def test_imports_that_cover_the_drop_in_are_left_alone(root: Root) -> None:
    text = 'version = 3\nimports = ["conf.d/*.toml"]\n'
    root.write(CONFIG, text)
    root.install()
    assert (root.path / CONFIG).read_text() == text
    root.ctl("uninstall")
    assert sorted(root.tree()) == ["etc", "etc/containerd", CONFIG]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (CONFIG, "version = [\n", "not valid TOML"),
        (CONFIG, "version = 9\n", "containerd refuses /etc/containerd/config.toml: "),
        (
            CONFIG,
            "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kuasar-runc]\n"
            '  runtime_type = "x"\n',
            "has runtimes of these names itself: kuasar-runc",
        ),
        ("etc/kuasar/kuasar.toml", 'log_level = "loud"\n', "log_level: 'loud' is none of"),
        ("etc/kuasar/kuasar.toml", "x = [\n", "/etc/kuasar/kuasar.toml: not valid TOML"),
        ("usr/local/bin/kuasarctl", "#!/bin/sh\n", "/usr/local/bin/kuasarctl: there is something else"),
        ("etc/kuasar", "a file", "/etc/kuasar: cannot be made: File exists"),
    ],
)
def test_what_is_in_the_way_is_named_and_nothing_is_done(root: Root, name: str, text: str, words: str) -> None:
    root.write(name, text)
    before = root.tree()
    assert words in root.install(code=1).stderr
    assert root.tree() == before


def test_a_file_without_a_version_means_what_it_meant_before(root: Root) -> None:
    """containerd 2.1 ignores what such a file says of CRI; with a drop-in of version 2 it would begin to heed it."""
    root.write(CONFIG, "[plugins.cri.containerd.runtimes.crun]\n  runtime_type = 'io.containerd.runc.v2'\n")
    root.install()
    assert set(runtimes(root.dump())) == {"runc", *OURS}


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo containerd github.com/containerd/containerd 1.7.24 abc", "1.7.24; 2.1 or newer is needed"),
        ("echo hello", "not understood: 'hello'"),
        ("exit 1", "not understood"),
        (f'exec {PROGRAM} "$@" | sed "s/^oom_score = 0/oom_score = $RANDOM$$/"', "it would change other settings"),
        (f'exec {PROGRAM} "$@" | sed s/kuasar-wasmtime/x/', "containerd would not have the runtime kuasar-wasmtime"),
    ],
)
def test_a_containerd_that_will_not_do(root: Root, script: str, words: str) -> None:
    program = root.path.parent / "containerd"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    assert words in root.install(program=str(program), code=1).stderr
    assert root.tree() == {}
    root.install(program="/no/such/containerd", code=1)


def test_an_edited_drop_in_is_kept_while_containerd_takes_it(root: Root) -> None:
    root.install()
    path = root.path / DROP_IN
    path.write_text(path.read_text() + "  # of the operator\n")
    root.write("etc/kuasar/kuasar.toml", (root.path / "etc/kuasar/kuasar.toml").read_text() + "# mine\n")
    assert root.install().stdout == "nothing to do: all of it is installed\n"
    path.write_text("version = 3\n")
    assert "was edited, and does not fit any more" in root.install(code=1).stderr
    root.ctl("uninstall")
    assert sorted(name for name in root.tree() if not (root.path / name).is_dir()) == [
        f"{DROP_IN}.kuasar-saved",
        "etc/kuasar/kuasar.toml.kuasar-saved",
    ]


def test_sandboxes_keep_it_installed(root: Root) -> None:
    root.install()
    root.write("run/kuasar/sandboxes/abc/sandbox.msgpack", "")
    assert "there are 1 sandboxes (abc)" in root.ctl("uninstall", code=1).stderr
    shutil.rmtree(root.path / "run/kuasar/sandboxes/abc")
    root.write("var/log/kuasar/gateway.log", "x")
    root.write("etc/kuasar/kuasar.toml", "broken = [")
    root.ctl("uninstall", "--purge")
    assert sorted(root.tree()) == ["run", "var", "var/log"]


def test_data_that_was_there_before_stays(root: Root) -> None:
    root.write("var/log/kuasar/old.log", "x")
    before = root.tree()
    root.install()
    root.ctl("uninstall")
    assert root.tree() == before


@pytest.fixture
def armed(tmp_path: Path) -> Iterator[Path]:
    """Where failpoints are armed."""
    directory = tmp_path / "failpoints"
    directory.mkdir()
    failpoints.configure(str(directory))
    yield directory
    failpoints.configure("")


@pytest.mark.parametrize("number", [1, 2, 4, 8])
def test_every_step_is_taken_back(root: Root, armed: Path, number: int) -> None:
    root.write(CONFIG, V3)
    before = root.tree()
    arm(armed, "install.file", number)
    assert "everything was put back as it was" in root.install(code=1).stderr
    assert root.tree() == before
    (armed / "install.file").unlink(missing_ok=True)
    root.install()
    installed = root.tree()
    arm(armed, "uninstall.file", number)
    assert "everything was put back as it was" in root.ctl("uninstall", code=1).stderr
    assert root.tree() == installed


@pytest.mark.parametrize("point", ["install.recorded", "install.file"])
@pytest.mark.parametrize("then", ["install", "uninstall"])
def test_after_a_kill_it_goes_on_or_back(root: Root, tmp_path: Path, point: str, then: str) -> None:
    root.write(CONFIG, V3)
    before = root.tree()
    directory = tmp_path / "failpoints"
    directory.mkdir()
    arm(directory, point, 3 if point == "install.file" else 1, "kill")
    script = (
        "import sys; from kuasar.core import failpoints; from kuasar.cli.ctl.main import main;"
        "failpoints.configure(sys.argv.pop(1)); main()"
    )
    argv = [sys.executable, "-c", script, str(directory), "install", "--root", str(root.path), "--containerd", PROGRAM]
    assert subprocess.run(argv, stdin=subprocess.DEVNULL).returncode == -signal.SIGKILL
    if then == "install":
        root.install()
        assert "nothing to do" in root.install().stdout
    root.ctl("uninstall")
    assert root.tree() == before


def arm(directory: Path, name: str, number: int, action: str = "error") -> None:
    """The ``number``-th time it is reached."""
    (directory / name).write_text(f"{action} skip={number - 1} times=1")
