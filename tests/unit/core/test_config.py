"""The configuration: all problems at once, each with file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from kuasar.core.config import Config, ConfigError, load
from kuasar.core.engines import BACKEND_MODULES


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "kuasar.toml"
    path.write_text(text)
    return str(path)


def test_everything_has_a_default(tmp_path: Path) -> None:
    config = load(write(tmp_path, ""))
    assert config.sandboxes_dir == "/run/kuasar/sandboxes"
    assert config.bus_address == "ipc:///run/kuasar/bus.sock"
    assert config.gateway.task_address == "ttrpc+unix:///run/kuasar/task.sock"
    assert set(config.sandboxers) == {f"kuasar-{kind}" for kind in BACKEND_MODULES}
    assert {sandboxer.engine for sandboxer in config.sandboxers.values()} == set(config.engines)


def test_grpc_can_be_chosen_for_tasks(tmp_path: Path) -> None:
    assert load(write(tmp_path, '[gateway]\ntask_api = "grpc"\n')).gateway.task_address == (
        "grpc+/run/kuasar/gateway.sock"
    )


def test_all_problems_at_once_with_file_and_key(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'surprise = 1\nlog_level = 3\n[gateway]\nsocket = []\n[engines.runc]\nbinray = "x"\n[sandboxers.a]\n'
        "[sandboxers.b]\nengine = true\n",
    )
    with pytest.raises(ConfigError) as caught:
        load(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    for key in (
        "surprise",
        "log_level",
        "gateway.socket",
        "engines.runc.binray",
        "sandboxers.a.engine",
        "sandboxers.b",
    ):
        assert any(f": {key}" in line for line in lines), key


def test_a_whole_number_is_a_ratio_too(tmp_path: Path) -> None:
    tracing = load(write(tmp_path, '[tracing]\nendpoint = "https://[::1]/v1/traces"\nsample_ratio = 0\n')).tracing
    assert (tracing.endpoint, tracing.sample_ratio) == ("https://[::1]/v1/traces", 0.0)


@pytest.mark.parametrize("listen", ["unix:/run/kuasar/m.sock", "127.0.0.1:9477", "127.1.2.3:1", "[::1]:9477"])
def test_metrics_may_be_served_here(tmp_path: Path, listen: str) -> None:
    assert load(write(tmp_path, f'[metrics]\nlisten = "{listen}"\n')).metrics.listen == listen


@pytest.mark.parametrize(
    "listen",
    ["0.0.0.0:9477", "10.0.0.1:9477", "localhost:9477", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", ":1", "/m"],
)
def test_metrics_may_not_be_served_there(tmp_path: Path, listen: str) -> None:
    with pytest.raises(ConfigError, match=r"metrics\.listen: .* is neither unix:/path nor a loopback address"):
        load(write(tmp_path, f'[metrics]\nlisten = "{listen}"\n'))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '[tracing]\nendpoint = "collector:4318"\n',
            "tracing.endpoint: 'collector:4318' is no http:// or",
        ),
        ('[tracing]\nendpoint = "http:///v1/traces"\n', "tracing.endpoint"),
        ('[tracing]\nendpoint = "http://a:x/"\n', "tracing.endpoint"),
        ("[tracing]\nsample_ratio = 1.5\n", "tracing.sample_ratio: must be between 0 and 1"),
        ("[tracing]\nsample_ratio = true\n", "tracing.sample_ratio: float is needed"),
        ('[metrics]\nlisten = "unix:m.sock"\n', "metrics.listen: 'm.sock' is not an absolute path"),
        ('log_level = "loud"', "log_level: 'loud' is none of"),
        ('state_dir = "run"', "state_dir: 'run' is not a normalised absolute path"),
        ('state_dir = "/run/../x"', "state_dir"),
        (f'[gateway]\nsocket = "/{"x" * 120}"', "gateway.socket: longer than"),
        ('[gateway]\ntask_api = "soap"', "gateway.task_api"),
        ("[gateway]\nmax_message_bytes = 10", "gateway.max_message_bytes"),
        ("[gateway]\nmax_requests_in_flight = 0", "gateway.max_requests_in_flight"),
        ('[engines.x]\nkind = "warp"', "engines.x.kind: 'warp' is none of"),
        ('[engines.gvisor]\nplatform = "kvm"', "engines.gvisor.platform: 'kvm' is none of systrap, ptrace"),
        ('[engines.wasmedge]\nplugin_dir = "x"', "engines.wasmedge.plugin_dir: 'x' is not an absolute path"),
        ('[sandboxers.x]\nengine = "nowhere"', "sandboxers.x.engine: no \\[engines.nowhere\\]"),
        ("[supervisor]\npreload = [1]", "supervisor.preload: a list of strings"),
        ("x = ", "not valid TOML"),
    ],
)
def test_each_problem_is_named(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load(write(tmp_path, text))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"/no/such/kuasar\.toml: cannot be read: No such file"):
        load("/no/such/kuasar.toml")


def test_the_configuration_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Config().log_level = "debug"  # type: ignore[misc]
