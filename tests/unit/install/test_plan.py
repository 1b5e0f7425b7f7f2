"""What would be done: an operator's work is never overwritten, and everything of ours goes away again."""

from __future__ import annotations

from pathlib import Path

import pytest

from kuasar.core.errors import AlreadyExists, InvalidArgument
from kuasar.install.files import Found, file, link, put
from kuasar.install.plan import NEW, SAVED, Change, plan_install, plan_uninstall
from kuasar.install.record import Entry, Record, Target

MAIN, OURS = "/main.toml", "/ours.toml"
IMPORT = f'imports = ["{OURS}"]  # added by kuasarctl install\n'


class Node:
    """A scratch root, and the record of what was installed there."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.path = root
        self.record = Record()

    def write(self, path: str, text: str) -> None:
        """What an operator does."""
        put(self.root + path, file(text.encode()))

    def install(self, main: str = "", **wanted: str) -> dict[str, str]:
        """Plan it and do it; gives what is done to each path. ``main``: the new text of containerd's configuration."""
        files = {f"/{name}": file(text.encode()) for name, text in wanted.items()}
        if main:
            files[MAIN] = file(main.encode())
        changes, entries = plan_install(files, MAIN, self.record, self.root)
        self.record = Record(entries=Record.from_file(Record(entries=entries).to_file(), "x").entries)
        return self.carry_out(changes)

    def uninstall(self, purge: bool = False) -> dict[str, str]:
        """The way back."""
        return self.carry_out(plan_uninstall(self.record, MAIN, OURS, self.root, purge))

    def carry_out(self, changes: list[Change]) -> dict[str, str]:
        for change in changes:
            put(self.root + change.path, change.after)
        return {change.path: change.action for change in changes}

    def files(self) -> dict[str, str]:
        """All that is there."""
        return {f"/{each.name}": each.read_text() for each in self.path.iterdir()}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_life_without_an_operator(node: Node) -> None:
    assert node.install(a="1", b="1") == {"/a": "create", "/b": "create"}
    assert node.install(a="1", b="1") == {"/a": "same", "/b": "same"}
    assert node.install(a="2", b="1") == {"/a": "update", "/b": "same"}
    assert node.uninstall() == {"/a": "remove", "/b": "remove"}
    assert node.files() == {}
    assert node.uninstall() == {"/a": "same", "/b": "same"}


def test_an_operators_file_is_kept_and_ours_put_beside(node: Node) -> None:
    node.install(a="1")
    node.write("/a", "mine")
    assert node.install(a="1") == {"/a": "keep"}, "nothing new to offer"
    assert node.install(a="2") == {"/a": "keep", "/a" + NEW: "create"}
    assert node.install(a="2") == {"/a": "keep", "/a" + NEW: "same"}
    assert node.install(a="3") == {"/a": "keep", "/a" + NEW: "update"}
    (node.path / f"a{NEW}").unlink()
    assert node.install(a="3") == {"/a": "keep"}, "it was declined"
    assert node.install(a="4")["/a" + NEW] == "create"
    node.write("/a", "4")
    assert node.install(a="4") == {"/a": "same", "/a" + NEW: "remove"}
    assert node.files() == {"/a": "4"}


def test_a_file_that_was_there_before_us(node: Node) -> None:
    node.write("/a", "theirs")
    assert node.install(a="1") == {"/a": "keep", "/a" + NEW: "create"}
    assert node.uninstall() == {"/a": "same", "/a" + NEW: "remove"}
    assert node.files() == {"/a": "theirs"}
    node.write("/a", "1")
    node.record = Record()
    assert node.install(a="1") == {"/a": "same"}
    assert node.uninstall() == {}
    assert node.files() == {"/a": "1"}


def test_an_edited_file_is_moved_aside_or_purged(node: Node) -> None:
    node.install(a="1", b="1")
    node.write("/a", "mine")
    assert node.uninstall() == {"/a" + SAVED: "save", "/a": "remove", "/b": "remove"}
    assert node.files() == {"/a" + SAVED: "mine"}
    (node.path / f"a{SAVED}").unlink()
    node.write("/a", "mine")
    assert node.uninstall(purge=True)["/a"] == "remove"
    assert node.files() == {}


def test_containerds_file_goes_back_to_the_byte(node: Node) -> None:
    node.write(MAIN, "# theirs\nversion = 3\n")
    before = node.path.joinpath(MAIN[1:]).stat()
    assert node.install(main="# theirs\n" + IMPORT + "version = 3\n") == {MAIN: "update"}
    assert node.uninstall() == {MAIN: "restore"}
    assert node.files() == {MAIN: "# theirs\nversion = 3\n"}
    assert node.path.joinpath(MAIN[1:]).stat().st_mtime_ns == before.st_mtime_ns


def test_containerds_file_was_edited_since(node: Node) -> None:
    node.write(MAIN, "version = 3\n")
    node.install(main=IMPORT + "version = 3\n")
    node.write(MAIN, IMPORT + "version = 3\noom_score = 1\n")
    assert node.install(main=IMPORT + "version = 3\noom_score = 1\n") == {MAIN: "same"}
    assert node.uninstall() == {MAIN: "update"}
    assert node.files() == {MAIN: "version = 3\noom_score = 1\n"}


def test_containerds_file_was_written_anew_since(node: Node) -> None:
    node.write(MAIN, "version = 3\n")
    node.install(main=IMPORT + "version = 3\n")
    node.write(MAIN, "version = 2\n")
    assert node.install(main=IMPORT + "version = 2\n") == {MAIN: "update"}
    assert node.uninstall() == {MAIN: "restore"}
    assert node.files() == {MAIN: "version = 2\n"}


def test_there_was_no_containerds_file(node: Node) -> None:
    assert node.install(main=IMPORT) == {MAIN: "create"}
    node.write(MAIN, IMPORT + "# a remark\n")
    assert node.uninstall() == {MAIN: "update"}
    node.write(MAIN, IMPORT)
    assert node.uninstall() == {MAIN: "remove"}
    assert node.files() == {}


def test_an_import_that_cannot_be_taken_out(node: Node) -> None:
    node.write(MAIN, "version = 3\n")
    node.install(main=IMPORT + "version = 3\n")
    node.write(MAIN, "version = [\n")
    with pytest.raises(InvalidArgument, match=rf"take {OURS} out of its imports by hand"):
        node.uninstall()


@pytest.mark.parametrize("there", ["directory", "file", "another link"])
def test_links_replace_nothing(node: Node, there: str) -> None:
    if there == "directory":
        (node.path / "a").mkdir()
    else:
        put(f"{node.root}/a", file(b"x") if there == "file" else link("/else/where"))
    with pytest.raises(AlreadyExists, match=r"^/a: .*move it away first"):
        plan_install({"/a": link("/target")}, MAIN, node.record, node.root)


def test_a_link_of_ours_follows_a_new_version(node: Node) -> None:
    for target in ("/old/bin", "/new/bin"):
        changes, entries = plan_install({"/a": link(target)}, MAIN, node.record, node.root)
        node.record = Record(entries=entries)
        node.carry_out(changes)
    assert [change.action for change in changes] == ["update"]
    assert "+link to /new/bin" in changes[0].diff()
    node.uninstall()
    assert list(node.path.iterdir()) == []


def test_diffs_can_be_read(node: Node) -> None:
    node.write("/a", "one\ntwo")
    changes, _ = plan_install({"/b": file(b"x\n")}, MAIN, node.record, node.root)
    assert changes[0].diff() == "--- /dev/null\n+++ /b\n@@ -0,0 +1 @@\n+x\n"
    change = Change("/a", "update", file(b"one\ntwo"), file(b"one\n"))
    assert change.diff() == "--- /a\n+++ /a\n@@ -1,2 +1 @@\n one\n-two\n\\ No newline at end of file\n"
    assert Change("/a", "same", Found(), Found()).diff() == ""


def test_the_record_is_what_was_written() -> None:
    entry = Entry(file(b"\0", 0o600), ("file:1",), "file:2")
    record = Record("1.0", "file:3", Target("/c", "/p", "u"), {"/a": entry}, ("/d",), ("/e",), ("/f",), ("r",))
    assert Record.from_file(record.to_file(), "x") == record


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 2}'])
def test_a_damaged_record_is_named(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^/the/record: "):
        Record.from_file(file(text.encode()), "/the/record")
