"""A Debian machine that boots in a second: systemd-nspawn over a cached debootstrap.

It shares the network with the host, so that ports on loopback are the same on both.
"""

import contextlib
import fcntl
import os
import platform
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
CACHE: Final = Path(os.environ.get("FLOTILLA_CACHE") or ROOT / ".cache") / "debian-box"
# The host's own release: packages are built for that.
SUITE: Final = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
PACKAGES: Final = "ca-certificates,dbus,libgomp1,libstdc++6,procps,python3,systemd,systemd-sysv"
# Only a failure takes this long.
DEBOOTSTRAP_SECONDS: Final = 1200
BOOT_SECONDS: Final = 90
COMMAND_SECONDS: Final = 300
# How systemd-nspawn asks whoever keeps it to start it again.
REBOOT_EXIT: Final = 133
# A machine of its own has these; this nspawn's list of what a container may call is older.
LANDLOCK: Final = "landlock_create_ruleset landlock_add_rule landlock_restrict_self"
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
    "DEBIAN_FRONTEND": "noninteractive",
}


# cgroup version 1, as it is mounted on the host.
MEMORY_CONTROLLER: Final = Path("/sys/fs/cgroup/memory")


class BoxError(AssertionError):
    """A command in the box, or the box itself, did not do what it was asked to."""


def missing() -> str | None:
    """Why no box can be booted here; None when one can."""
    if os.environ.get("FLOTILLA_TEST_SYSTEMD") != "1":
        return "FLOTILLA_TEST_SYSTEMD=1 is not set (a booted Debian container; minutes)"
    if os.geteuid() != 0:
        return "booting a container needs root"
    if not SUITE:
        return "this is no Debian"
    for tool in ("debootstrap", "systemd-nspawn", "nsenter", "dpkg-deb"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    return None


def wait_until(what: str, ready: Callable[[], Any], seconds: float = BOOT_SECONDS) -> Any:
    """Poll another machine until ``ready`` gives something true; BoxError when it never does."""
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        if time.monotonic() > deadline:
            raise BoxError(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.1)
    return found


def base_image() -> Path:
    """A minimal Debian with systemd and Python, made once from this machine's own mirror."""
    image = CACHE / SUITE
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not image.is_dir():
            _debootstrap(image)
    return image


def _debootstrap(image: Path) -> None:
    half_made = image.with_suffix(".new")
    shutil.rmtree(half_made, ignore_errors=True)
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.splitlines()
    mirrors = [line.partition(" ")[2] for line in targets if line.startswith(f"{SUITE} ")]
    subprocess.run(
        [
            *("debootstrap", "--variant=minbase", f"--include={PACKAGES}"),
            *(SUITE, str(half_made), *mirrors[:1]),
        ],
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=DEBOOTSTRAP_SECONDS,
    )
    for archive in (half_made / "var/cache/apt/archives").glob("*.deb"):
        archive.unlink()
    # What a power cut leaves is tested elsewhere; here dpkg need not sync every file.
    (half_made / "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n")
    half_made.rename(image)


class DebianBox:
    """One box: a writable layer over the base image, booted, rebooted, and thrown away."""

    def __init__(self, base: Path, directory: Path) -> None:
        self.root = directory / "root"
        self._layers = (base, directory / "upper", directory / "work")
        self._log = directory / "console.log"
        self._nspawn: subprocess.Popen[bytes] | None = None

    @contextlib.contextmanager
    def booted(self) -> Iterator["DebianBox"]:
        """The box, up; nothing of it is left running or mounted afterwards."""
        base, upper, work = self._layers
        for directory in (self.root, upper, work):
            directory.mkdir()
        layers = f"lowerdir={base},upperdir={upper},workdir={work}"
        subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", layers, str(self.root)],
            check=True,
            timeout=30,
        )
        try:
            self._boot()
            yield self
        finally:
            self._power_off()
            subprocess.run(["umount", "--lazy", str(self.root)], check=False, timeout=60)

    def run(self, *command: str, check: bool = True, text: str | None = None) -> str:
        """What a command in the box printed; BoxError when it fails."""
        result = subprocess.run(
            ["nsenter", "-t", str(self._leader()), "-m", "-u", "-i", "-p", *command],
            input=text,
            stdin=None if text is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=_ENVIRONMENT,
            check=False,
            timeout=COMMAND_SECONDS,
            # A signal that a command sends to its own group is not for whoever runs the tests.
            start_new_session=True,
        )
        if check and result.returncode != 0:
            raise BoxError(
                f"{' '.join(command)} gave {result.returncode}:\n{result.stdout[-3000:]}"
            )
        return result.stdout

    def property(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).strip()

    @contextlib.contextmanager
    def short_of_memory(
        self, pid: int, limit_bytes: int, left_bytes: int
    ) -> Iterator[Callable[[], int]]:
        """A process of the box and its later children have a limit, of which so much is left.

        Gives a count of those that the kernel ended for it. systemd in the box cannot set the
        limit: a container is not given the memory controller of cgroup version 1.
        """
        group = MEMORY_CONTROLLER / f"flotilla-{uuid.uuid4().hex[:12]}"
        ballast = Path("/dev/shm") / group.name  # noqa: S108 - memory that no killing sets free
        group.mkdir()
        try:
            (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
            fill = f"head -c {limit_bytes - left_bytes} /dev/zero >{ballast}"
            join = f"echo $$ >{group}/cgroup.procs"
            subprocess.run(["sh", "-c", f"{join} && {fill}"], check=True, timeout=60)
            (group / "cgroup.procs").write_text(str(self._host_pid(pid)))
            yield lambda: int((group / "memory.oom_control").read_text().split()[-1])
        finally:
            ballast.unlink(missing_ok=True)
            (group / "memory.limit_in_bytes").write_text("-1")
            wait_until("an empty memory group", lambda: _dissolved(group))

    def reboot(self) -> None:
        """Restart the whole box in order, and wait until it is up."""
        self.run("systemctl", "reboot", check=False)
        assert self._nspawn is not None
        if (code := self._nspawn.wait(BOOT_SECONDS)) != REBOOT_EXIT:
            raise BoxError(f"the box ended with {code} instead of a reboot")
        self._boot()

    def _host_pid(self, pid: int) -> int:
        space = (Path("/proc") / str(self._leader()) / "ns/pid").readlink()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                status = (process / "status").read_text()
                numbers = status.partition("NSpid:")[2].partition("\n")[0].split()
                if numbers[-1] == str(pid) and (process / "ns/pid").readlink() == space:
                    return int(process.name)
        raise BoxError(f"the box has no process {pid}")

    def _boot(self) -> None:
        with self._log.open("ab") as log:
            self._nspawn = subprocess.Popen(
                [
                    *("systemd-nspawn", "--quiet", "--boot", f"--directory={self.root}"),
                    *("--register=no", "--keep-unit", "--console=pipe"),
                    *("--resolv-conf=off", f"--machine=flotilla-{uuid.uuid4().hex[:12]}"),
                    f"--system-call-filter={LANDLOCK}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until("a first process", lambda: self._leader(required=False))
        self._wait_until_up()

    def _wait_until_up(self) -> None:
        def up() -> bool:
            state = self.run("systemctl", "is-system-running", check=False).strip()
            return state in {"running", "degraded"}

        wait_until("the boot", up)

    def _leader(self, *, required: bool = True) -> int:
        """The host's number of the box's first process; 0 while there is none."""
        nspawn = self._nspawn
        if nspawn is None or nspawn.poll() is not None:
            raise BoxError(f"the box went down:\n{self._log.read_text(errors='replace')[-2000:]}")
        children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children").read_text().split()
        for child in map(int, children):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().strip() in {"systemd", "init"}:
                    return child
        if required:
            raise BoxError("the box has no first process now")
        return 0

    def _power_off(self) -> None:
        nspawn = self._nspawn
        if nspawn is None or nspawn.poll() is not None:
            return
        with contextlib.suppress(BoxError):
            # An orderly stop takes long and shows nothing; its whole PID namespace ends with it.
            os.kill(self._leader(), signal.SIGKILL)
        try:
            nspawn.wait(20)
        except subprocess.TimeoutExpired:
            nspawn.kill()
            nspawn.wait(20)


def _dissolved(group: Path) -> bool:
    """Move its processes out and remove it; not yet when one was forked meanwhile."""
    try:
        for process in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (MEMORY_CONTROLLER / "cgroup.procs").write_text(process)
        group.rmdir()
    except OSError:
        return False
    return True
