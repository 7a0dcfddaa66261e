"""A disk of its own for the runs of a campaign, that can be full, hang or refuse: an ext4 image on a loop device.

Where this process may not mount, the runs lie in a plain folder, and the faults that need the disk are left out: `able`
is False. Nothing outside the volume is touched, and a disk that hangs comes back by itself even if this process dies.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

MEGABYTES = 512
_TOOLS = ("mkfs.ext4", "mount", "umount", "fsfreeze", "chattr")


class Volume:
    """A context manager; `root` is where the runs lie."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "runs"
        self._image = folder / "disk.img"
        self._ballast = self.root / "ballast"
        self.able = False

    def __enter__(self) -> Self:
        self.root.mkdir()
        if os.geteuid() == 0 and all(map(shutil.which, _TOOLS)):
            with open(self._image, "wb") as image:
                image.truncate(MEGABYTES << 20)
            # -m 0: no reserve for root, so that a full disk is full for us too.
            made = _succeeds("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))
            self.able = made and _succeeds("mount", "-o", "loop", str(self._image), str(self.root))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.able:
            # Lazy: a process that has just been killed may hold a file for a moment more.
            subprocess.run(["umount", "-l", str(self.root)], check=True)

    def fill(self) -> None:
        """Not a byte is left."""
        step = 1 << 20
        with open(self._ballast, "wb", buffering=0) as ballast:
            while step >= 512:
                try:
                    os.posix_fallocate(ballast.fileno(), ballast.seek(0, os.SEEK_END), step)
                except OSError:
                    step //= 2

    def empty(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def hang(self, seconds: float) -> None:
        """Every write waits for so long. Returns at once."""
        script = f"fsfreeze -f {self.root}; sleep {seconds}; fsfreeze -u {self.root}"
        subprocess.Popen(["sh", "-c", script], start_new_session=True)

    def refuse(self, folder: Path) -> list[Path]:
        """No file can be made, renamed or removed in any folder below this one; the folders, for `accept`."""
        below = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
        subprocess.run(["chattr", "-f", "+i", *map(str, below)], check=False)
        return below

    def accept(self, folders: list[Path]) -> None:
        present = [str(path) for path in folders if path.exists()]
        subprocess.run(["chattr", "-f", "-i", *present], check=False)


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
