"""containerd's configuration with one import more or less, and nothing else different."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuasar.core.errors import InvalidArgument
from kuasar.install.imports import add_import, imports_of, remove_import, replace_imports

OURS = "/etc/containerd/conf.d/kuasar.toml"
TEXTS = [
    "",
    "version = 3\n",
    "version = 3",
    "# a comment\n\nversion = 2 # the format\n[plugins]\n",
    '[grpc]\n  address = "/run/x"\nimports = ["not ours: in a table"]\n',
    'version = 3\nimports = ["/a.toml"]\n',
    "imports = []\nversion = 3\n",
    "imports=[ ] # none\n",
    "imports = [\n  '/a.toml', # the first\n  \"/b [x].toml\",\n]\nversion = 3\n",
    'root = """\nimports = ["a trap"]\n"""\n\nimports = [ "/a.toml" , ]\n[grpc]\n',
    "state = '''imports = ['''\nversion = 3\r\nimports = ['''/x''']\r\n",
    '"imports" = ["/a"]\noom_score = -999\n',
    'temp = "a \\" quote = ["\nrequired_plugins = ["x = [", \'#\']\n'
    'proxy = {a = [1, {b = "}"}], c.d = 2024-01-01T00:00:00Z}\n',
    'root.imports = ["/not/this"]\nversion = 3\n',
]


@pytest.mark.parametrize("text", TEXTS)
def test_there_and_back(text: str) -> None:
    added = add_import(text, OURS)
    assert imports_of(added).count(OURS) == 1
    assert set(imports_of(added)) == {*imports_of(text), OURS}
    rest = [{k: v for k, v in tomllib.loads(each).items() if k != "imports"} for each in (text, added)]
    assert rest[0] == rest[1]
    assert add_import(added, OURS) == added
    assert remove_import(added, OURS) == text
    assert remove_import(text, OURS) == text


@pytest.mark.parametrize(
    ("text", "after"),
    [
        (f'imports = ["/a", "{OURS}"]\n', 'imports = ["/a"]\n'),
        (f"imports = ['{OURS}']\n", "imports = []\n"),
        (f'imports = [\n "/a",\n "{OURS}",\n "/b"]\n', 'imports = [\n "/a",\n \n "/b"]\n'),
    ],
)
def test_what_an_operator_has_written_anew_is_taken_out(text: str, after: str) -> None:
    assert remove_import(text, OURS) == after


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = [\n", "not valid TOML"),
        ("imports = 3\n", "not a list of strings"),
        ("imports = [3]\n", "not a list of strings"),
    ],
)
def test_what_cannot_be_edited_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        add_import(text, OURS)


def test_an_unusual_spelling_is_left_to_people() -> None:
    text = 'imports = ["/etc/containerd/conf.d/\\u006buasar.toml"]\n'
    assert imports_of(text) == [OURS]
    with pytest.raises(InvalidArgument, match="by hand"):
        remove_import(text, OURS)


@pytest.mark.parametrize("text", TEXTS)
def test_a_copy_that_lies_elsewhere(text: str) -> None:
    assert imports_of(replace_imports(text, ["/x", "/y"])) == ["/x", "/y"]


KEYS = st.sampled_from(["root", "imports_", "version", "'imports '", "a-1"])
VALUES = st.recursive(
    st.sampled_from(["1", "true", '"x = [#"', "'y\"'", '"""\n]"""', "'''a''b'''", '"""q"""""', "-1.5e3", "1979-05-27"]),
    lambda inner: st.lists(inner, max_size=3).map(lambda each: "[" + " ,# c ]\n".join(each) + "\n]"),
    max_leaves=6,
)


@given(st.dictionaries(KEYS, VALUES), st.lists(st.sampled_from(['"/a"', "'/b'", '"/c,["']), unique=True), st.booleans())
def test_whatever_stands_around_it(values: dict[str, str], imports: list[str], first: bool) -> None:
    lines = [f"{key} = {value}\n" for key, value in values.items()]
    lines.insert(0 if first else len(lines), f"imports = [{', '.join(imports)}]\n")
    text = "".join([*lines, "[t]\nimports = [1]\n"])
    tomllib.loads(text)
    assert remove_import(add_import(text, OURS), OURS) == text
