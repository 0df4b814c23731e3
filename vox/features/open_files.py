"""Files kept open for reading: those used last, so that any number of shards needs few descriptors."""

import os
import threading
from collections import OrderedDict

from vox.disk import name_os_errors

MAX_OPEN_FILES = 256  # in a process; the usual limit is 1024

Version = tuple[int, int, int]  # inode, time of change of the content and of the inode


class OpenFile:
    """A file's descriptor, closed with the last use of this."""

    def __init__(self, path: str, version: Version) -> None:
        self.fd = -1
        with name_os_errors(path):
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        # Reading ahead of an utterance would fetch others that are not next.
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_RANDOM)
        self.version = version

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class OpenFiles:
    """The files that a process used last; one that leaves is closed when no thread uses it any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[str, OpenFile] = OrderedDict()

    def get(self, path: str, version: Version) -> OpenFile:
        """Return a file open in this version; raise OSError naming it."""
        with self._lock:
            found = self._files.get(path)
            if found is not None and found.version == version:
                self._files.move_to_end(path)
                return found
        # Two threads may both come here; either's is as good, and one is let go.
        opened = OpenFile(path, version)
        with self._lock:
            self._files[path] = opened
            self._files.move_to_end(path)
            while len(self._files) > MAX_OPEN_FILES:
                self._files.popitem(last=False)
        return opened

    def forget(self) -> None:
        """Forget all files, as a forked process must: another thread may have held the lock."""
        self._lock = threading.Lock()
        self._files = OrderedDict()


OPEN_FILES = OpenFiles()
os.register_at_fork(after_in_child=OPEN_FILES.forget)
