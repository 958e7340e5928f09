"""kill -9 at a chosen point, without a process: an exception that no handler of ours catches leaves the same disk."""

import os
from pathlib import Path


class Killed(BaseException):
    """Nothing after it happens."""


class Kill:
    """Counts every operation that changes the disk, and ends the `at`-th one before it, or half-way through a write."""

    def __init__(self, patch, at, writers=()):
        self.at, self.log = at, []
        for owner, name in ((os, "replace"), (os, "fsync"), (os, "mkdir"), (os, "rmdir"), (os, "unlink")):
            patch.setattr(owner, name, self._counted(name, getattr(owner, name)))
        for owner, name in ((Path, "write_bytes"), (Path, "write_text"), *writers):
            patch.setattr(owner, name, self._torn(name, getattr(owner, name)))

    def _counted(self, name, operation):
        def call(*args, **options):
            self._point(name)
            return operation(*args, **options)

        return call

    def _torn(self, name, operation):
        def call(*args, **options):
            self._point(name)
            operation(*args, **options)
            path = next(value for value in args if isinstance(value, Path))
            whole = path.stat().st_size
            os.truncate(path, whole // 2)
            self._point(f"half {name}")
            return operation(*args, **options)

        return call

    def _point(self, name):
        self.log.append(name)
        if len(self.log) == self.at:
            raise Killed
