"""The guest's small stand-ins for modules of the standard library, against the real ones."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.util
import json
import os
import signal
import socket
import sys
import types
import typing
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from guest import recipe
from guest.closure import own_modules

CHECKOUT = Path(__file__).parents[3]


def slim(name: str) -> ModuleType:
    """The stand-in, without its taking the real one's place."""
    path = CHECKOUT / recipe.SLIM_DIRECTORY / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"slim_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", recipe.SLIM)
def test_it_has_all_that_the_guest_imports_from_it(name: str) -> None:
    files, _ = own_modules(str(CHECKOUT), recipe.AGENT_ROOTS, recipe.NOT_IN_GUEST)
    module = slim(name)
    for file in files.values():
        text = (CHECKOUT / file).read_text()
        for line in text.splitlines():
            if line.startswith(f"from {name} import "):
                for wanted in line.removeprefix(f"from {name} import ").split(","):
                    assert hasattr(module, wanted.strip()), f"{file}: {wanted}"


@pytest.fixture(params=["slim", "real"])
def decorate(request: pytest.FixtureRequest) -> Any:
    """The two implementations of ``dataclass``."""
    return slim("dataclasses") if request.param == "slim" else dataclasses


class Fields:
    a: int
    b: str = "b"
    kind: ClassVar[str] = "thing"

    @property
    def both(self) -> str:
        return f"{self.a}{self.b}"


def copy_of(cls: type, **namespace: Any) -> type:
    """The class once more, as decorating changes it."""
    own = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(cls.__name__, (), {**own, **namespace})


def test_fields_defaults_and_factories(decorate: Any) -> None:
    annotations = {**Fields.__annotations__, "c": "list[int]"}
    made: Any = decorate.dataclass(copy_of(Fields, __annotations__=annotations, c=decorate.field(default_factory=list)))
    one, two = made(1), made(a=1, c=[])
    assert (one.a, one.b, one.c, one.kind) == (1, "b", [], "thing")
    assert one == two
    one.c.append(3)
    assert (one == two, two.c) == (False, [])
    assert repr(two).endswith("Fields(a=1, b='b', c=[])")
    assert one != (1, "b", [3])
    one.a = 5
    assert one.both == "5b"
    with pytest.raises(TypeError):
        hash(one)


@pytest.mark.parametrize(
    ("positional", "named"), [((), {}), ((), {"a": 1, "x": 2}), ((1, "b", 2), {}), ((1,), {"a": 2})]
)
def test_wrong_arguments(decorate: Any, positional: tuple[Any, ...], named: dict[str, int]) -> None:
    made: Any = decorate.dataclass(frozen=True)(copy_of(Fields))
    with pytest.raises(TypeError):
        made(*positional, **named)


def test_frozen_ones_are_values(decorate: Any) -> None:
    made: Any = decorate.dataclass(frozen=True)(copy_of(Fields))
    assert {made(1): "x"}[made(1)] == "x"
    assert made(1, "c").both == "1c"
    thing = made(1)
    with pytest.raises(AttributeError):
        thing.a = 2
    with pytest.raises(AttributeError):
        del thing.a


@pytest.mark.parametrize("implementation", ["slim", "real"])
def test_protocols_tell_who_has_their_methods(implementation: str) -> None:
    module: Any = slim("typing") if implementation == "slim" else typing

    def close(self: object) -> None: ...

    closes: Any = module.runtime_checkable(
        types.new_class("Closes", (module.Protocol,), exec_body=lambda body: body.update(close=close))
    )
    explicit = types.new_class("Explicit", (closes,))
    assert isinstance(type("File", (), {"close": close})(), closes)
    assert isinstance(explicit(), closes)
    assert not isinstance(object(), closes)
    assert not isinstance(object(), explicit)


def test_parameters_mean_nothing() -> None:
    module: Any = slim("typing")
    box = types.new_class("Box", (module.Generic[module.TypeVar("T", bound=int)],))
    assert isinstance(box[int](), box)  # type: ignore[index]  # its base has the parameter
    assert module.Any[int] is module.Any


def test_datetime_is_the_interpreters_own() -> None:
    module = slim("datetime")
    assert module.datetime is datetime.datetime
    assert module.datetime_CAPI is sys.modules["_datetime"].datetime_CAPI


def test_a_thread_is_over_when_it_has_been_joined() -> None:
    done: list[int] = []
    thread = slim("threading").Thread(target=lambda: done.append(1), daemon=True)
    thread.start()
    thread.join()
    assert done == [1]


VALUES: list[Any] = [{"a": [1, -2.5, True, None, "ü\n\u2028"], "": {}}, [], "text", 7, 1e300, False, {"n": {"m": [[]]}}]


@pytest.mark.parametrize("value", VALUES)
def test_json_is_written_and_read_as_the_library_does(value: Any) -> None:
    module: Any = slim("json")
    for options in ({}, {"separators": (",", ":")}, {"ensure_ascii": False}):
        text = json.dumps(value, **options)
        assert module.dumps(value, **options) == text
        assert module.loads(f" {text}\n") == value


def test_json_asks_for_what_it_does_not_have() -> None:
    module: Any = slim("json")
    assert module.JSONEncoder(default=str, ensure_ascii=False).encode({"at": Path("/ü")}) == '{"at": "/ü"}'
    with pytest.raises(TypeError, match="PosixPath is not JSON"):
        module.dumps([Path("/")])
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(ValueError, match="Circular"):
        module.dumps(cycle)
    assert module.dumps([[]]) == "[[]]"


@pytest.mark.parametrize("text", ["", " ", "{", "[1,", '{"a" 1}', "nul", '"open', "1 2", "[1]]"])
def test_what_is_no_json_is_a_value_error(text: str) -> None:
    for module in (slim("json"), json):
        with pytest.raises(ValueError, match="char"):
            module.loads(text)


def test_signals_have_the_names_that_the_library_gives() -> None:
    module: Any = slim("signal")
    assert {int(each): each.name for each in signal.Signals} == {
        number: module.Signals(number).name for number in map(int, signal.Signals)
    }
    assert module.Signals(9) == signal.SIGKILL
    with pytest.raises(ValueError, match="0 is not a valid Signals"):
        module.Signals(0)


def test_sockets_are_accepted_closed_and_carry_descriptors() -> None:
    module: Any = slim("socket")
    with module.socket(module.AF_UNIX, module.SOCK_STREAM) as listener:
        listener.bind("")
        listener.listen()
        with module.socket(module.AF_UNIX) as client:
            client.connect(listener.getsockname())
            accepted, _ = listener.accept()
            assert not os.get_inheritable(accepted.fileno())
            accepted.set_inheritable(True)
            assert os.get_inheritable(accepted.fileno())
            with accepted, open("/dev/null", "rb") as first, open("/dev/zero", "rb") as second:
                fds = (first.fileno(), second.fileno())
                with socket.socket(fileno=client.detach()) as sender:
                    socket.send_fds(sender, [b"two"], list(fds))
                data, found, _, _ = module.recv_fds(accepted, 16, 2)
                assert (data, len(found)) == (b"two", 2)
                for sent, received in zip(fds, found, strict=True):
                    assert os.fstat(received).st_rdev == os.fstat(sent).st_rdev
                    os.close(received)
        assert accepted.fileno() == -1
    assert listener.fileno() == -1
