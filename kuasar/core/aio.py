"""A small event loop for ``async def`` code: epoll, timers, futures, tasks. Owned by one thread, one per process.

Why not asyncio: a worker exists per sandbox, and asyncio costs each 25 ms at start, 5 MiB, and doubles the latency of
the bus (docs/decisions/0002-own-event-loop.md). Only what the worker and the agent need is here; there are no threads
and no child-process helpers (see ``kuasar/core/spawn.py``).

Rules: a callback must not block; an exception that escapes a callback or an unawaited task goes to
``Loop.on_error`` and never ends the loop; cancellation is a :class:`Cancelled` raised at the ``await``, which clean-up
may not swallow.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import select
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

from kuasar.core.errors import DeadlineExceeded

T = TypeVar("T")
READ = select.EPOLLIN
WRITE = select.EPOLLOUT
PRIORITY = select.EPOLLPRI
_MANY_TIMERS = 100


_carried: tuple[Any, dict[str, str] | None] = (None, None)
"""What the running task carries along: a value of whoever traces it, and what it is about."""


def get_local() -> Any:
    """What the running task carries along; None outside of tasks, and where nothing was set."""
    return _carried[0]


def set_local(value: Any) -> None:
    """Have the running task carry ``value`` along, and every task that it spawns from now on."""
    global _carried
    _carried = (value, _carried[1])


def get_about() -> dict[str, str] | None:
    """What the running task is about, for the log; None where nobody has said."""
    return _carried[1]


def set_about(about: dict[str, str]) -> None:
    """Have the running task, and every task that it spawns from now on, be about ``about``. Who clears it, when the
    request is answered, keeps what was left behind from speaking of it."""
    global _carried
    _carried = (_carried[0], about)


class Cancelled(BaseException):
    """Raised at the ``await`` of a cancelled task. Not an ``Exception``: cancellation is never wrapped."""


class Future(Generic[T]):
    """A result that is not there yet. States: pending -> done (result, exception or cancelled), once."""

    __slots__ = ("_callbacks", "_exception", "_loop", "_result", "_seen", "done")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._callbacks: list[Callable[[Future[T]], None]] = []
        self._result: T | None = None
        self._exception: BaseException | None = None
        self._seen = False
        self.done = False

    def set_result(self, result: T) -> None:
        """End with ``result``; harmless when already done (the first end counts)."""
        if not self.done:
            self._result = result
            self._finish()

    def set_exception(self, exception: BaseException) -> None:
        """End with ``exception``; harmless when already done."""
        if not self.done:
            self._exception = exception
            self._finish()

    def cancel(self) -> None:
        """End with :class:`Cancelled`; harmless when already done."""
        self.set_exception(Cancelled())

    def result(self) -> T:
        """The result, or raises the exception. Only when done."""
        self._seen = True
        if self._exception is not None:
            raise self._exception
        return self._result  # type: ignore[return-value]  # done without an exception: the result is set

    def failure(self) -> BaseException | None:
        """The exception it ended with, if any; counts as having looked at it."""
        self._seen = True
        return self._exception

    def add_done_callback(self, callback: Callable[[Future[T]], None]) -> None:
        """Call ``callback(self)`` from the loop once done (soon, if it is already)."""
        if self.done:
            self._loop.call_soon(callback, self)
        else:
            self._callbacks.append(callback)

    def remove_done_callback(self, callback: Callable[[Future[T]], None]) -> None:
        """Forget a callback; harmless when unknown."""
        self._callbacks = [known for known in self._callbacks if known != callback]

    def _finish(self) -> None:
        self.done = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self._loop.call_soon(callback, self)

    def __await__(self) -> Generator[Future[Any], None, T]:
        if not self.done:
            yield self
        return self.result()


class Task(Future[T]):
    """A coroutine being run. Cancelling throws :class:`Cancelled` where it waits; it is done when it has unwound."""

    __slots__ = ("_cancelling", "_carried", "_coro", "_waiting", "name")

    def __init__(self, loop: Loop, coro: Coroutine[Any, Any, T], name: str, now: bool = False) -> None:
        super().__init__(loop)
        self._coro = coro
        self._waiting: Future[Any] | None = None
        self._cancelling = False
        self._carried = _carried
        self.name = name
        loop.tasks.add(self)
        if now:
            self._step()
        else:
            loop.call_soon(self._step)

    def cancel(self) -> None:
        if self.done:
            return
        self._cancelling = True
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.remove_done_callback(self._wake)
            self._loop.call_soon(self._step)

    def _wake(self, _: Future[Any]) -> None:
        self._waiting = None
        self._step()

    def _step(self) -> None:
        global _carried
        if self.done or self._waiting is not None:
            return
        outer, _carried = _carried, self._carried
        try:
            try:
                if self._cancelling:
                    self._cancelling = False
                    waiting = self._coro.throw(Cancelled())
                else:
                    waiting = self._coro.send(None)
            finally:
                self._carried, _carried = _carried, outer
        except StopIteration as stop:
            self._end(stop.value, None)
        except (Cancelled, Exception) as exc:
            self._end(None, exc)
        else:
            self._waiting = waiting
            waiting.add_done_callback(self._wake)
            if self._cancelling:  # it has cancelled itself, while it ran
                self.cancel()

    def _end(self, result: Any, exception: BaseException | None) -> None:
        self._loop.tasks.discard(self)
        if exception is None:
            self.set_result(result)
            return
        watched = bool(self._callbacks)
        self.set_exception(exception)
        if not watched and isinstance(exception, Exception):
            self._loop.call_soon(self._report_unseen)

    def _report_unseen(self) -> None:
        if not self._seen and self._exception is not None:
            self._loop.on_error(f"task {self.name}", self._exception)


class Timer:
    """Handle of a delayed call."""

    __slots__ = ("_loop", "args", "callback", "when")

    def __init__(self, loop: Loop, when: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._loop = loop
        self.when = when
        self.callback: Callable[..., object] | None = callback
        self.args = args

    def cancel(self) -> None:
        """Never call; harmless when already called or cancelled."""
        if self.callback is not None:
            self.callback = None
            self.args = ()
            self._loop._timer_cancelled()


class Loop:
    """The loop of this process. Readers and writers are level-triggered and keyed by descriptor.

    The caller owns every descriptor it registers and must unregister it before closing it.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, dict[int, Callable[[], object]]] = {}
        self._ready: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._cancelled_timers = 0
        self._running = False
        self.tasks: set[Task[Any]] = set()
        self.on_error: Callable[[str, BaseException], None] = _print_error

    # -- scheduling ------------------------------------------------------------------------------------------------

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Call in this turn of the loop or the next."""
        self._ready.append((callback, args))

    def call_later(self, seconds: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call after ``seconds``; the handle can be cancelled."""
        return self.call_at(time.monotonic() + seconds, callback, *args)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call at ``when`` on the clock of ``time.monotonic``."""
        timer = Timer(self, when, callback, args)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def _timer_cancelled(self) -> None:
        """Deadlines are far away and mostly cancelled: those must not pile up until they are due."""
        self._cancelled_timers += 1
        if self._cancelled_timers > _MANY_TIMERS and self._cancelled_timers * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if entry[2].callback is not None]
            heapq.heapify(self._timers)
            self._cancelled_timers = 0

    def future(self) -> Future[Any]:
        """A new pending future of this loop."""
        return Future(self)

    def spawn(self, coro: Coroutine[Any, Any, T], name: str = "") -> Task[T]:
        """Run ``coro`` beside everything else; an error nobody looks at goes to ``on_error``."""
        return Task(self, coro, name or getattr(coro, "__qualname__", "task"))

    def spawn_now(self, coro: Coroutine[Any, Any, T], name: str = "") -> Task[T]:
        """As :meth:`spawn`, but run it up to its first wait before this returns. Not from within a task."""
        return Task(self, coro, name or getattr(coro, "__qualname__", "task"), now=True)

    async def sleep(self, seconds: float) -> None:
        """Wait ``seconds``."""
        future: Future[None] = Future(self)
        timer = self.call_later(seconds, future.set_result, None)
        try:
            await future
        finally:
            timer.cancel()

    async def wait_for(self, awaitable: Awaitable[T], deadline: float | None, what: str = "the call") -> T:
        """The result of ``awaitable``, or :class:`DeadlineExceeded` at ``deadline`` (monotonic; None: never).

        A coroutine is cancelled at the deadline, or when the caller is cancelled, and has unwound when this returns or
        raises; what it gives in spite of that counts. A future or task belongs to its owner and is left alone.
        """
        if deadline is None:
            return await awaitable
        if isinstance(awaitable, Future):
            future: Future[T] = awaitable
            if not await self._ends_by(future, deadline):
                raise DeadlineExceeded(f"{what} did not finish in time")
            return future.result()
        task = self.spawn(_await(awaitable), what)
        try:
            if await self._ends_by(task, deadline):
                return task.result()
        except Cancelled:
            task.cancel()
            await self._ends_by(task, None)
            task.failure()
            raise
        task.cancel()
        await self._ends_by(task, None)
        failure = task.failure()
        if failure is None:
            return task.result()
        raise DeadlineExceeded(f"{what} did not finish in time") from failure

    async def _ends_by(self, future: Future[Any], deadline: float | None) -> bool:
        """Whether ``future`` ends by ``deadline``; neither its result nor its error is looked at."""
        gate: Future[bool] = Future(self)

        def opened(_: Future[Any]) -> None:
            gate.set_result(True)

        timer = None if deadline is None else self.call_at(deadline, gate.set_result, False)
        future.add_done_callback(opened)
        try:
            return await gate
        finally:
            if timer is not None:
                timer.cancel()
            future.remove_done_callback(opened)

    # -- descriptors -----------------------------------------------------------------------------------------------

    def add_reader(self, fd: int, callback: Callable[[], object], events: int = READ) -> None:
        """Call whenever ``fd`` is readable or hung up (or on other epoll ``events``); replaces the one before."""
        self._register(fd, events, callback)

    def add_writer(self, fd: int, callback: Callable[[], object]) -> None:
        """Call whenever ``fd`` is writable; replaces the one before."""
        self._register(fd, WRITE, callback)

    def remove_reader(self, fd: int, events: int = READ) -> None:
        """Forget the reader; harmless when there is none."""
        self._unregister(fd, events)

    def remove_writer(self, fd: int) -> None:
        """Forget the writer; harmless when there is none."""
        self._unregister(fd, WRITE)

    async def wait_readable(self, fd: int) -> None:
        """Wait until ``fd`` is readable or hung up (a pidfd: until the process has ended). Takes the reader's place."""
        future: Future[None] = Future(self)

        def readable() -> None:
            future.set_result(None)

        self.add_reader(fd, readable)
        try:
            await future
        finally:
            if self._handlers.get(fd, {}).get(READ) is readable:  # nobody else has taken the place since
                self.remove_reader(fd)

    def _register(self, fd: int, event: int, callback: Callable[[], object]) -> None:
        handlers = self._handlers.get(fd)
        if handlers is None:
            self._handlers[fd] = {event: callback}
            self._epoll.register(fd, event)
            return
        handlers[event] = callback
        try:
            self._epoll.modify(fd, _mask(handlers))
        except FileNotFoundError:
            # The number is another file's now: its predecessor was closed while it was watched, against the rule.
            self._handlers[fd] = {event: callback}
            self._epoll.register(fd, event)

    def _unregister(self, fd: int, event: int) -> None:
        handlers = self._handlers.get(fd)
        if handlers is None or handlers.pop(event, None) is None:
            return
        if handlers:
            self._epoll.modify(fd, _mask(handlers))
            return
        del self._handlers[fd]
        try:
            self._epoll.unregister(fd)
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.EBADF):  # closed before: the kernel has forgotten it already
                raise

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run until ``coro`` is done and give its result. :meth:`stop` cancels it and waits until it has unwound."""
        task = self.spawn(coro, "main")
        task.add_done_callback(lambda _: self.stop())
        self.run_forever()
        if not task.done:
            task.cancel()
            self.run_forever()
        return task.result()

    def run_forever(self) -> None:
        """Run until :meth:`stop`."""
        self._running = True
        while self._running:
            self._turn()

    def stop(self) -> None:
        """Leave :meth:`run_forever` after this turn."""
        self._running = False

    def close(self) -> None:
        """Cancel all tasks, let them unwind, close the epoll descriptor."""
        for task in list(self.tasks):
            task.cancel()
        for _ in range(100):
            if not self._ready:
                break
            self._run_ready()
        self._epoll.close()

    def _turn(self) -> None:
        timeout = 0.0 if self._ready else self._until_next_timer()
        for fd, events in self._epoll.poll(timeout):
            handlers = self._handlers.get(fd)
            if handlers is None:
                continue
            # Errors and hang-ups go to everyone: a reader sees EOF, a writer sees EPIPE.
            broken = events & (select.EPOLLERR | select.EPOLLHUP)
            for event, callback in list(handlers.items()):
                if (events & event or broken) and handlers.get(event) is callback:
                    self._call(callback, ())
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            due, timer.callback = timer.callback, None  # cancelling it has no effect from here on
            if due is None:
                self._cancelled_timers -= 1
            else:
                self._call(due, timer.args)
        self._run_ready()

    def _run_ready(self) -> None:
        for _ in range(len(self._ready)):
            callback, args = self._ready.popleft()
            self._call(callback, args)

    def _call(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        try:
            callback(*args)
        except Exception as exc:
            self.on_error(getattr(callback, "__qualname__", "callback"), exc)

    def _until_next_timer(self) -> float:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
            self._cancelled_timers -= 1
        if not self._timers:
            return -1
        return max(0.0, self._timers[0][0] - time.monotonic())


class Lock:
    """Mutual exclusion between tasks of one loop, first come first served."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._held = False
        self._waiters: deque[Future[None]] = deque()

    async def __aenter__(self) -> None:
        if not self._held:
            self._held = True
            return
        future: Future[None] = Future(self._loop)
        self._waiters.append(future)
        try:
            await future
        except Cancelled:
            if future.done and future.failure() is None:
                self._release()  # the lock had been handed over before the cancellation arrived
            elif future in self._waiters:
                self._waiters.remove(future)
            raise

    async def __aexit__(self, *exc: object) -> None:
        self._release()

    def _release(self) -> None:
        while self._waiters:
            future = self._waiters.popleft()
            if not future.done:
                future.set_result(None)
                return
        self._held = False


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


def _mask(handlers: dict[int, Callable[[], object]]) -> int:
    mask = 0
    for event in handlers:
        mask |= event
    return mask


def _print_error(what: str, exc: BaseException) -> None:
    os.write(2, f"unhandled error in {what}: {type(exc).__name__}: {exc}\n".encode(errors="replace"))
