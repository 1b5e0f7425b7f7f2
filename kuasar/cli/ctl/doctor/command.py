"""``doctor``: runs every check, whatever the others say, and reports."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import click

from kuasar.cli.ctl.doctor import containerd, kernel, machines, processes, storage
from kuasar.cli.ctl.doctor.finding import FAIL, PASS, WARN, Finding, failed, passed
from kuasar.cli.ctl.node import Node
from kuasar.cli.ctl.options import json_option
from kuasar.cli.ctl.output import Paragraph, data, table
from kuasar.core.config import ConfigError, load


@click.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check what a node needs: kernel, cgroups, KVM, our processes, containerd, CNI, engines, guest image, space.

    Each check says pass, warn (something does not work, or soon will not) or fail (no sandbox can run), why, and what
    to do.
    Nothing is changed. Exits with 1 if any check fails.
    """
    findings = list(examine(ctx.find_root().params.get("config")))
    counts = Counter(finding.status for finding in findings)
    if as_json:
        data(
            {
                **{status: counts[status] for status in (PASS, WARN, FAIL)},
                "checks": [*map(dataclasses.asdict, findings)],
            }
        )
    else:
        table(("CHECK", "STATUS", "REASON"), ((each.check, each.status, _words(each)) for each in findings))
        click.echo(f"{counts[PASS]} passed, {counts[WARN]} warnings, {counts[FAIL]} failed")
    sys.exit(1 if counts[FAIL] else 0)


def _words(finding: Finding) -> Paragraph:
    """The reason, and below it what to do."""
    parts = [finding.reason, f"→ {finding.remedy}" if finding.remedy else ""]
    return Paragraph("\n".join(" ".join(part.split()) for part in parts if part))


def examine(config_path: str | None) -> Iterator[Finding]:
    """Every check. Without a configuration only those that need none."""
    try:
        config = load(config_path)
    except ConfigError as exc:
        yield failed("configuration", "; ".join(str(exc).splitlines()), "correct the file; each problem names its key")
        yield from _safely("kernel", kernel.check)
        return
    yield passed("configuration", config.path or "the defaults: there is no configuration file")
    with Node(config) as node:
        yield from _safely("kernel", kernel.check)
        yield from _safely("storage", lambda: storage.check(config))
        yield from _safely("processes", lambda: processes.check(node))
        yield from _safely("containerd", lambda: containerd.check(config))
        yield from _safely("engines", lambda: machines.check(node))


def _safely(name: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """A check that breaks is a finding, too."""
    try:
        yield from check()
    except Exception as exc:
        yield failed(name, f"the check itself failed: {type(exc).__name__}: {exc}", "report this as a defect")
