"""Bringing the package from a pod's image onto the host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kuasar import __version__
from kuasar.install.carry import HOME, main

INSTALL = '#!/bin/sh\necho "$@" >"$HOST/said"\nexit $(cat "$HOST/code")\n'


class Pod:
    """What the init container has: an image's environment, a host, and a way to run something there."""

    def __init__(self, path: Path) -> None:
        self.host = path / "host"
        self.host.mkdir()
        self.source = path / "environment"
        (self.source / "bin").mkdir(parents=True)
        (self.source / "lib64").symlink_to("lib")
        for name, text in (("python", "#!/bin/sh\nexit 0\n"), ("kuasarctl", INSTALL)):
            self.write(self.source / "bin" / name, text)
        self.enter = path / "enter"
        self.write(self.enter, f'#!/bin/sh\nexport HOST={self.host}\nprogram=$1; shift\nexec "$HOST$program" "$@"\n')
        self.config = path / "kuasar.toml"
        self.config.write_text('log_level = "debug"\n')
        self.fails_with(0)

    def write(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def fails_with(self, code: int) -> None:
        """What the host's ``kuasarctl install`` ends with."""
        (self.host / "code").write_text(f"{code}\n")

    def carry(self, *options: str) -> int:
        paths = ["--source", str(self.source), "--host", str(self.host), "--config", str(self.config)]
        return main([*paths, "--enter", str(self.enter), *options])

    @property
    def versions(self) -> list[str]:
        return sorted(os.listdir(f"{self.host}{HOME}"))


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def test_it_is_copied_and_installed(pod: Pod) -> None:
    home = f"{HOME}/{__version__}"
    (pod.host / "opt" / "kuasar" / "0.0.1").mkdir(parents=True)
    for _ in range(2):
        assert pod.carry("--", "--containerd-service", "other.service") == 0
        said = (pod.host / "said").read_text()
        assert said == f"install --containerd-service other.service --kuasar-config {home}/offered.toml\n"
        assert Path(f"{pod.host}{home}/offered.toml").read_text() == 'log_level = "debug"\n'
        assert os.readlink(f"{pod.host}{home}/lib64") == "lib"
        assert pod.versions == [__version__]
        pod.config.write_text('log_level = "debug"\n')


def test_a_refusal_keeps_the_version_before(pod: Pod) -> None:
    (pod.host / "opt" / "kuasar" / "0.0.1").mkdir(parents=True)
    pod.fails_with(1)
    assert pod.carry() == 1
    assert pod.versions == ["0.0.1", __version__]


def test_a_host_that_cannot_run_it(pod: Pod, capsys: pytest.CaptureFixture[str]) -> None:
    pod.write(pod.source / "bin" / "python", "#!/bin/sh\necho no python here >&2\nexit 1\n")
    assert pod.carry() == 1
    assert f"the host has no Python that runs {HOME}/{__version__}: no python here" in capsys.readouterr().err
    assert not (pod.host / "said").exists()


def test_a_copy_that_was_cut_short_is_made_anew(pod: Pod) -> None:
    part = Path(f"{pod.host}{HOME}/{__version__}.part/bin")
    part.mkdir(parents=True)
    (part / "rest").touch()
    assert pod.carry() == 0
    assert pod.versions == [__version__]
    assert not Path(f"{pod.host}{HOME}/{__version__}/bin/rest").exists()


def test_what_cannot_be_copied_is_named(pod: Pod, capsys: pytest.CaptureFixture[str]) -> None:
    (pod.host / "opt").write_text("a file")
    assert pod.carry() == 1
    assert "kuasar-carry: " in capsys.readouterr().err
