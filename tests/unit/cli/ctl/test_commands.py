"""The commands on a node where nobody answers: what they say, and how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.ctl.node_files import Files


def test_ps_without_a_gateway_says_where_it_looked(files: Files) -> None:
    files.sandbox("abc123def456789", "web")
    files.sandbox("bcd", "db", state="stopped")
    done = files.ctl("ps")
    assert done.exit_code == 0
    assert "the gateway does not answer at" in done.stderr
    assert f"what the directories below {files.state}/sandboxes say" in done.stderr
    head, first, second = done.stdout.splitlines()
    assert head.split() == ["ID", "POD", "ENGINE", "STATE", "AGE", "WORKER", "GEN", "RESTARTS", "MACHINE"]
    assert first.split() == ["abc123def456", "default/web", "runc", "ready", "0s", "?", "1", "?", "-"]
    assert second.split()[:4] == ["bcd", "default/db", "runc", "stopped"]
    assert files.ctl("ps", "-q").stdout.split() == ["abc123def456789", "bcd"]
    assert "abc123def456789" in files.ctl("ps", "--full").stdout


def test_ps_as_data(files: Files) -> None:
    files.sandbox("abc", "web")
    answer = json.loads(files.ctl("ps", "--json").stdout)
    assert answer["source"] == "directories"
    (one,) = answer["sandboxes"]
    assert (one["id"], one["pod_name"], one["restarts"], one["worker"]) == ("abc", "web", None, None)


def test_inspect_falls_back_to_the_record(files: Files) -> None:
    files.sandbox("abc", "web", containers={"c1": {}}, phases=[("launch", 7.25)])
    done = files.ctl("inspect", "web")
    assert done.exit_code == 0
    assert "this is what its record says" in done.stderr
    assert "default/web (u)" in done.stdout
    assert "launch=7.25ms" in done.stdout
    assert json.loads(files.ctl("inspect", "ab", "--json").stdout)["containers"] == ["c1"]


def test_why_of_one_that_is_gone(files: Files) -> None:
    files.tombstone("abc1", "web", oom_kills=2, console=["Kernel panic \x1b[31m"], log=["last words"])
    done = files.ctl("why", "web")
    assert done.exit_code == 0
    assert done.stdout.startswith("sandbox abc1 ended at ")
    for words in ("the agent died", "killed by SIGKILL (137)", "2 of its processes were killed", "last words"):
        assert words in done.stdout
    assert "\x1b" not in done.stdout
    answer = json.loads(files.ctl("why", "abc", "--json").stdout)
    assert (answer["state"], answer["end"]["exit_status"]) == ("gone", 137)


def test_why_of_a_start_that_failed_and_of_one_that_runs(files: Files) -> None:
    files.sandbox("abc", "web", state="created", started_at=0)
    files.tombstone("abc", "web", phase="start: cgroup was done", reason="no space left", started_at=0)
    assert "could not be started at" in files.ctl("why", "abc").stdout
    files.sandbox("bcd", "db")
    assert files.ctl("why", "bcd").stdout.startswith("sandbox bcd runs, since ")


def test_timings(files: Files) -> None:
    files.sandbox("abc", "web", phases=[("files", 1.0), ("launch", 30.0), ("setup", 0.0)])
    lines = files.ctl("timings", "abc").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["files", "launch", "setup", "together"]
    assert lines[1].count("█") > 10 * lines[0].count("█")
    assert lines[2].endswith("▏")
    assert "31.00 ms" in lines[3]
    assert json.loads(files.ctl("timings", "abc", "--json").stdout)["milliseconds"] == 31
    files.sandbox("bcd", "db", state="created", started_at=0)
    assert files.ctl("timings", "bcd").exit_code == 3


def test_logs(files: Files) -> None:
    files.sandbox("abc", "web")
    logs = files.root / "l" / "sandboxes"
    (logs / "abc.log").write_text("one\ntwo\nthree\n")
    (logs / "abc.agent.log").write_text("agent")
    assert files.ctl("logs", "web").stdout == "one\ntwo\nthree\n"
    assert files.ctl("logs", "abc", "-n", "2").stdout == "two\nthree\n"
    assert files.ctl("logs", "abc", "-n", "0").stdout == ""
    assert files.ctl("logs", "abc", "--agent").stdout == "agent"
    assert json.loads(files.ctl("logs", "abc", "--agent", "--json").stdout) == {
        "sandbox": "abc",
        "log": "agent",
        "line": "agent",
    }
    missing = files.ctl("logs", "abc", "--console")
    assert missing.exit_code == 3
    assert "abc.console.log" in missing.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["inspect", "none"], 3, "there is no sandbox 'none'"),
        (["why", "none"], 3, "nor has one ended in the last day"),
        (["logs", "ab"], 2, "'ab' fits 2"),
        (["ps", "--fly"], 2, "No such option"),
        (["fly"], 2, "No such command"),
        (["template", "rm", "0000"], 3, "there is no template '0000'"),
        (["template", "build", "--engine", "runc"], 2, "has no templates"),
        (["events", "-f"], 4, "the gateway does not answer"),
        (["gc", "--dry-run"], 1, ""),
    ],
)
def test_exit_codes(files: Files, arguments: list[str], code: int, words: str) -> None:
    files.sandbox("abc", "web")
    files.sandbox("abd", "db")
    done = files.ctl(*arguments)
    assert done.exit_code == code, done.output
    assert words in done.stderr


def test_a_broken_configuration_names_every_problem(files: Files) -> None:
    files.config.write_text('log_level = "loud"\nflag = 1\nstate_dir = 3\n')
    done = files.ctl("ps")
    assert done.exit_code == 2
    assert "flag: unknown key" in done.stderr
    assert "state_dir: str is needed" in done.stderr
    report = json.loads(files.ctl("doctor", "--json").stdout)
    assert report["checks"][0]["check"] == "configuration"
    assert "flag: unknown key" in report["checks"][0]["reason"]


def test_events_begin_with_what_has_ended(files: Files) -> None:
    files.tombstone("abc", "web", ended_at=1)
    files.tombstone("bcd", "db", ended_at=2, reason="stopped")
    first, second = files.ctl("events").stdout.splitlines()
    assert "abc" in first
    assert "reason=stopped" in second
    (line,) = files.ctl("events", "--sandbox", "db", "--json").stdout.splitlines()
    assert json.loads(line)["sandbox"] == "bcd"


def test_templates(files: Files) -> None:
    key = "0123456789abcdef01234567"
    directory = files.root / "c" / "qemu" / "templates"
    (directory / key).mkdir(parents=True)
    (directory / key / "memory").write_bytes(bytes(8192))
    (directory / key / "template.json").write_text(
        json.dumps({"memory_bytes": 134217728, "created_at": 5, "boot_seconds": 4.2})
    )
    (directory / f"{key}.bad").mkdir()
    (directory / f"{key}.new-77").mkdir()
    rows = files.ctl("template", "ls").stdout.splitlines()
    assert len(rows) == 3
    assert rows[1].split()[:3] == [key, "qemu", "ready"]
    assert "128 MiB" in rows[1]
    assert "4.2 s" in rows[1]
    assert [each["state"] for each in json.loads(files.ctl("template", "ls", "--json").stdout)] == [
        "ready",
        "set aside",
    ]
    assert files.ctl("template", "rm", "0123").exit_code == 0
    assert not (directory / key).exists()
    assert not (directory / f"{key}.bad").exists()
    assert (directory / f"{key}.new-77").exists()


def test_completion_offers_commands_ids_and_pods(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.sandbox("abc", "web")
    monkeypatch.setenv("_KUASARCTL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", f"kuasarctl --config {files.config} inspect w")
    monkeypatch.setenv("COMP_CWORD", "4")
    assert "plain,web" in files.ctl().stdout
    monkeypatch.delenv("_KUASARCTL_COMPLETE")
    assert "_KUASARCTL_COMPLETE=zsh_complete" in files.ctl("completion", "zsh").stdout


def test_version(files: Files) -> None:
    values = json.loads(files.ctl("version", "--json").stdout)
    assert values["config"] == str(files.config)
    assert Path(values["config"]).exists()
