"""One submission of a run works on it at a time; the others wait, and take over if it dies.

The owner keeps ``lease.json`` in the run's folder and rewrites it every ``BEAT_S`` seconds. A lease
that was not rewritten for ``EXPIRY_S`` may be taken, and at once if its owner ran on this machine
and has exited. Ages are differences of two times that the file system itself has set, so the clocks
of machines may differ. If its clock jumps back, a lease expires that was not rewritten while
another submission has waited for ``EXPIRY_S``.

Guarantees: on a local disk, and on NFS with locks, there is one owner, unless it is suspended for
longer than ``EXPIRY_S`` and then resumes: within ``BEAT_S`` it notices and is interrupted, and it
records no result. An object store has no locks: a submission that takes the lease checks after
``SETTLE_S`` whether it is still the owner. Two simultaneous submissions are both owners only if one
needs longer than that between reading and writing; one of the two ends within ``BEAT_S``. Even
then no version is registered twice, because both write the same MLflow run.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock
import psutil

from precalib_ray.errors import ClusterError
from precalib_ray.storage.folder import Folder

BEAT_S = 5.0
EXPIRY_S = 30.0
SETTLE_S = 2.0
_POLL_S = 1.0
_FILE = "lease.json"


class Lease:
    """The right to work on a run, as a context."""

    def __init__(self, folder: Folder, *, name: str, notify: Callable[[str], None]) -> None:
        """``notify`` gets messages about what the lease waits for."""
        self._folder, self._name, self._notify = folder, name, notify
        process = psutil.Process()
        self._token = uuid.uuid4().hex
        self._content = {
            "token": self._token,
            "machine": _machine(),
            "pid": process.pid,
            "started": process.create_time(),
            "shown": f"process {process.pid} on {socket.gethostname()}",
        }
        self._lock = filelock.FileLock(str(folder.local / ".lease.lock")) if folder.local else None
        self._failures = 0
        self._seen: datetime.datetime | None = None
        """The last beat of another owner, and when it was seen first."""
        self._seen_at = 0.0
        self._ended = threading.Event()
        self._in_main = threading.current_thread() is threading.main_thread()
        self.lost = False
        """Whether another submission has taken over."""

    def __enter__(self) -> Lease:
        """Wait for the lease, and keep it."""
        announced: str | None = None
        try:
            while (owner := self._try()) is not None:
                if owner["token"] not in ("", announced):
                    announced = owner["token"]
                    self._notify(f"{self._name} is being run by {owner['shown']}; waiting for it")
                time.sleep(_POLL_S)
        finally:
            self._folder.delete(self._probe)
        if announced:
            self._notify(f"{self._name}: it has ended")
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Release it; raises ClusterError in place of the interrupt that its loss caused."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError), self._exclusive():  # it expires anyway
            if self._is_mine():
                self._folder.delete(_FILE)
        if self.lost and kind is KeyboardInterrupt:
            self.require()

    def require(self) -> None:
        """Raise ClusterError if another submission has taken over."""
        with contextlib.suppress(OSError):  # transient; the next write fails too if it is not
            self.lost = self.lost or not self._is_mine()
        if self.lost:
            raise ClusterError(
                f"another submission of {self._name} has taken over, because this one did not "
                f"renew its lease for {EXPIRY_S:g} s; submitted again, it waits for the other and "
                "returns its result"
            )

    @property
    def _probe(self) -> str:
        return f"lease-{self._token}.probe"

    def _try(self) -> dict[str, Any] | None:
        """As ``_take``, tolerating transient errors of storage, as when a file is replaced."""
        try:
            owner = self._take()
        except OSError:
            self._failures += 1
            if self._failures * _POLL_S > EXPIRY_S:
                raise
            return {"token": ""}
        self._failures = 0
        return owner

    def _take(self) -> dict[str, Any] | None:
        """Become the owner, or return who is."""
        with self._exclusive() as locked:
            owner = self._read()
            if owner is not None and not self._has_died(owner):
                return owner
            self._write()
        if not locked:
            time.sleep(SETTLE_S)
            owner = self._read()
            if owner is None or owner["token"] != self._token:
                return owner or self._content
        return None

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                with self._exclusive():
                    if self._is_mine():
                        self._write()
                        continue
            except OSError:  # transient; the next beat may be in time
                continue
            self.lost = True
            if self._in_main:
                os.kill(os.getpid(), signal.SIGINT)
            return

    def _has_died(self, owner: dict[str, Any]) -> bool:
        if owner["machine"] == self._content["machine"]:
            try:
                process = psutil.Process(owner["pid"])
                other = abs(process.create_time() - owner["started"]) > 1.0  # PID reused
                if other or process.status() == psutil.STATUS_ZOMBIE:
                    return True
            except psutil.NoSuchProcess:
                return True
        self._folder.write(self._probe, "")
        now, beaten = self._folder.modified(self._probe), self._folder.modified(_FILE)
        if now is None or beaten is None:
            return beaten is None
        if beaten != self._seen:
            self._seen, self._seen_at = beaten, time.monotonic()
        unchanged = time.monotonic() - self._seen_at  # if the clock has jumped back since the beat
        return max((now - beaten).total_seconds(), unchanged) > EXPIRY_S

    def _read(self) -> dict[str, Any] | None:
        text = self._folder.read(_FILE)
        try:
            return dict(json.loads(text)) if text else None
        except ValueError:
            return None

    def _write(self) -> None:
        self._folder.write(_FILE, json.dumps(self._content))

    def _is_mine(self) -> bool:
        owner = self._read()
        return owner is not None and owner["token"] == self._token

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[bool]:
        """Hold the file lock; yields whether the file system has one."""
        with contextlib.ExitStack() as stack:
            locked = False
            if self._lock is not None:
                with contextlib.suppress(OSError, NotImplementedError):  # NFS without locks
                    stack.enter_context(self._lock)
                    locked = True
            yield locked


def _machine() -> str:
    """What makes a process id unique: host, its boot, and the PID namespace."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(parts)
