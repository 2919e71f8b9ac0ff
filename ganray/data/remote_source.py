"""A folder behind a URL, read and written with retries: anything that fsspec opens."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import unquote

import fsspec

from ganray.data.format import MANIFEST
from ganray.errors import UserError
from ganray.log import HIDDEN

RANGE_BYTES, MIN_RANGE_BYTES = 8 * 2**20, 64 * 2**10
"""Bytes per request, and their minimum: each failure divides them by four."""
MAX_MANIFEST_BYTES = 64 * 2**20
TRIES, OPEN_TRIES = 5, 3
"""Requests in a row that may fail; fewer for the manifest, as the URL may be wrong."""
BACKOFF_S = 0.5  # doubles with each failure
_CREDENTIALS = (
    "give this process credentials for it, for s3 AWS_ACCESS_KEY_ID and"
    " AWS_SECRET_ACCESS_KEY or AWS_PROFILE; a public bucket needs FSSPEC_S3_ANON=true"
)
T = TypeVar("T")


class StoppedError(RuntimeError):
    """Reading ended because the reader is being closed."""


class RemoteFolder:
    """A folder behind a URL, with retries. No message contains its password.

    Args:
        url: Address of the folder.
        stop: Event that ends reading with ``StoppedError``.
        option: Name of the option that the address was given by.

    Raises:
        UserError: The protocol is unknown, or its package is not installed.
    """

    def __init__(self, url: str, stop: threading.Event, option: str = "data.root") -> None:
        self._stop = stop
        user = re.match(r"[^/]*//([^/]*)@", url)
        secrets = [user[1], user[1].partition(":")[2]] if user else []
        secrets += [url.partition("?")[2]]  # the signature in the URLs of some stores
        variants = {variant for text in secrets for variant in (text, unquote(text)) if variant}
        self._secrets = sorted(variants, key=len, reverse=True)
        self._public_url = self._redact(url.rstrip("/"))
        if HIDDEN in url:
            raise UserError(f"{option}={url}: its password was not kept; give the whole URL again")
        self.fs: Any
        """The file system, of fsspec."""
        self.path: str
        """Path of the folder in it."""
        try:
            self.fs, path = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise UserError(f"{self}: a package is missing: {self._redact(error)}") from None
        except Exception as error:  # each package raises its own
            raise UserError(
                f"{self}: cannot be opened ({self._redact(error)}); use an address that fsspec"
                " knows, such as s3://bucket/folder, gs://, https://, or a path"
            ) from None
        self.path = path.rstrip("/")

    def __str__(self) -> str:
        return self._public_url

    def check_open(self) -> None:
        """Raise ``StoppedError`` if ``stop`` is set."""
        if self._stop.is_set():
            raise StoppedError(f"{self}: closed")

    def read_manifest(self) -> bytes:
        """Return the manifest; raise UserError if it cannot be read or is implausibly large."""

        def read(_: int) -> bytes:
            with self._open(MANIFEST) as file:
                data = file.read(MAX_MANIFEST_BYTES + 1)
            if len(data) > MAX_MANIFEST_BYTES:
                raise UserError(f"has more than {MAX_MANIFEST_BYTES} bytes, so it is no manifest")
            return data

        return self.retry(MANIFEST, "", read, OPEN_TRIES)

    def read(self, name: str, start: int, size: int) -> Iterator[bytes]:
        """Yield the bytes of a file from ``start`` on, at most ``RANGE_BYTES`` at once.

        Args:
            name: File in this folder.
            start: First byte.
            size: Size that the file must have.

        Raises:
            UserError: The file is missing, of another size or forbidden, or requests keep failing.
            StoppedError: ``stop`` was set.
        """
        file: Any = None

        def read_range(failures: int) -> bytes:
            nonlocal file
            if file is None or failures:
                file = None  # an old connection may be what fails
                file = self._open(name)
                if (actual := getattr(file, "size", None)) not in (None, size):
                    raise UserError(
                        f"has {actual} bytes, but {size} by its manifest; was the set replaced?"
                        " Copy it there again, manifest.json last"
                    )
            if file.tell() != start:
                file.seek(start)
            count = max(RANGE_BYTES >> 2 * failures, MIN_RANGE_BYTES)
            if not (data := file.read(min(count, size - start))):
                raise OSError("no bytes came")
            return data

        while start < size:
            data = self.retry(name, f" at byte {start} of {size}", read_range)
            start += len(data)
            yield data

    def _open(self, name: str) -> Any:
        path = f"{self.path}/{name}"
        return self.fs.open(path, "rb", block_size=RANGE_BYTES, cache_type="none")

    def retry(self, name: str, where: str, call: Callable[[int], T], tries: int = TRIES) -> T:
        """Return ``call(number of failures so far)``, called up to ``tries`` times.

        Raises:
            UserError: It fails each time, or for a reason that does not pass; names the file.
            StoppedError: ``stop`` was set.
        """
        problem = ""
        for failures in range(tries):
            self.check_open()
            try:
                return call(failures)
            except Exception as error:  # each package raises its own
                # The traceback ends here, as messages in it may contain the password.
                is_final, text = _classify(error)
                problem = self._redact(text)
            if is_final:
                raise UserError(f"{self}/{name}: {problem}")
            if failures < tries - 1:
                self._stop.wait(BACKOFF_S * 2**failures)
        raise UserError(
            f"{self}/{name}: the connection failed {tries} times in a row{where} ({problem});"
            " check network and server, then start again: what was transferred so far is kept"
        )

    def _redact(self, text: object) -> str:
        """Return the text as one line, without the secrets of the URL."""
        line = " ".join(str(text).split())
        for secret in self._secrets:
            line = line.replace(secret, HIDDEN)
        return line


def _classify(error: BaseException) -> tuple[bool, str]:
    """Return whether a retry is useless, and a description of the error."""
    cause = error.__cause__
    # fsspec raises FileNotFoundError for anything that HTTP fails with, a dead server too.
    if type(cause).__module__.startswith("aiohttp") or isinstance(cause, TimeoutError):
        assert cause is not None
        error = cause
    status = getattr(error, "status", None) or getattr(error, "code", None)
    name = type(error).__name__
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return True, (
            "does not exist; check the address, and whether all files were copied (for shards, also"
            " manifest.json)"
        )
    if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in name:
        return True, f"no permission ({error}); {_CREDENTIALS}"
    if isinstance(error, ValueError):
        if re.search(r"range requests|seek streaming", str(error)):
            return True, (
                f"the server must support range requests ({error}); use another, or copy the set"
            )
        return True, str(error)
    return False, f"{name}: {error}".removesuffix(": ")
