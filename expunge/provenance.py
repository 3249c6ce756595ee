"""What a result came from, as far as it may be written: versions, a hash of the code, the salt of private fields."""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import tempfile
from functools import cache
from pathlib import Path

from . import __version__


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"expunge": __version__, "python": platform.python_version()} | {
        name: version(name) for name in ("torch", "transformers", "peft", "safetensors", "numpy")
    }


@cache
def code_version(*parts: str) -> str:
    """A hash of the package's source files, or of those of some of its parts."""
    files = [f for part in parts or ("",) for f in sorted((Path(__file__).parent / part).rglob("*.py"))]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:12]


def salt() -> bytes:
    """The secret that private fields are hashed with: made once, kept in the user's cache, never written elsewhere."""
    from filelock import FileLock

    from .models.loading import cache_dir

    file = cache_dir() / "salt"

    def there() -> bool:
        return file.exists() and file.stat().st_size > 0

    if not there():
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            if not there():
                opened, name = tempfile.mkstemp(prefix=".salt-", dir=file.parent)  # for its owner only
                with open(opened, "wb") as f:
                    f.write(secrets.token_bytes(32))
                os.replace(name, file)  # another process finds it whole, or not at all
    return file.read_bytes()
