"""Atomic file writes: whenever the process ends, a file is the old one or the new one."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def replacing(path: str | Path, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """Open a new file that takes the place of the one at ``path`` at the block's end.

    Until then, and if the block raises, the old one stays as it is. A process that is killed in
    between leaves ``.name.*.tmp`` beside it. What is no regular file, such as a pipe, is written to
    as it is.
    """
    if Path(path).exists() and not Path(path).is_file():
        with open(path, mode, **options) as file:
            yield file
        return
    target = Path(path).resolve()
    if not target.parent.is_dir():
        reason = "path must lie in a folder that exists"
        raise FileNotFoundError(errno.ENOENT, reason, str(path))
    new = target.with_name(f".{target.name[:60]}.{secrets.token_hex(4)}.tmp")
    try:
        with open(new, mode.replace("w", "x"), **options) as file:
            if target.exists():
                os.chmod(new, target.stat().st_mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, target)
    except BaseException as error:
        new.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(new):  # a name that no caller knows
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
