"""Read files of a folder behind a URL: in ranges, with patience, and without telling passwords.

Anything that fsspec opens will do: ``s3://``, ``gs://``, ``http://``, ``file://``, a plain path.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import unquote

import fsspec

from ganray.config.serialization import HIDDEN
from ganray.errors import UserError

RANGE = 8 * 2**20  # bytes a request asks for; a quarter after each failure, down to SMALL_RANGE
SMALL_RANGE = 64 * 2**10
SMALL_FILE = 64 * 2**20
TRIES, BACKOFF_S = 5, 0.5  # requests in a row that bring nothing; the pause doubles each time
FIRST_TRIES = 3  # until something came: the address may be wrong, and s3fs takes 8 s for each
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs"}
PACKAGES |= {"abfs": "adlfs", "abfss": "adlfs", "http": "aiohttp", "https": "aiohttp"}
CREDENTIALS = (
    "give this process credentials that may read it, for s3 AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY or AWS_PROFILE; a public bucket needs FSSPEC_S3_ANON=true"
)

T = TypeVar("T")


class RemoteFolder:
    """A folder behind a URL. Its text is the URL without password, and so are its errors.

    Args:
        url: Address of the folder.
        stop: Once set, reading ends with ``Stopped``.

    Raises:
        ValueError: The protocol is unknown, or its package is not installed.
    """

    def __init__(self, url: str, stop: threading.Event) -> None:
        self._stop = stop
        user = re.match(r"[^/]*//([^/]*)@", url)
        secrets = [user[1], user[1].partition(":")[2]] if user else []
        secrets += [url.partition("?")[2]]  # a signature, in the addresses of some stores
        every = {secret for text in secrets for secret in (text, unquote(text)) if secret}
        self._secrets = sorted(every, key=len, reverse=True)
        self._shown = self._redact(url.rstrip("/"))
        if HIDDEN in url:
            raise UserError(f"data.root={url}: its password was not kept; give the whole URL again")
        protocol = url.partition("://")[0] if "://" in url else "file"
        try:
            self._fs: Any
            self._fs, path = fsspec.core.url_to_fs(url)
        except ImportError as error:
            package = PACKAGES.get(protocol, "the package that it names")
            raise UserError(
                f"{self}: {protocol}:// needs a package that cannot be imported "
                f"({self._redact(error)}); pip install {package}"
            ) from None
        except Exception as error:
            raise UserError(
                f"{self}: cannot be opened ({self._redact(error)}); use an address that fsspec "
                "knows, such as s3://bucket/folder, gs://, https://, or a path"
            ) from None
        self.path: str = path.rstrip("/")

    def __str__(self) -> str:
        return self._shown

    def check_open(self) -> None:
        """Raise ``Stopped`` once ``stop`` is set."""
        if self._stop.is_set():
            raise Stopped(f"{self}: closed; make it anew")

    def read_small(self, name: str) -> bytes:
        """Return a whole file of at most ``SMALL_FILE`` bytes.

        Raises:
            ValueError: It cannot be read, or is larger.
        """

        def read(_: int) -> bytes:
            with self._open(name) as file:
                data = b""
                while (part := file.read(SMALL_FILE + 1 - len(data))) and len(data) <= SMALL_FILE:
                    data += part
            if len(data) > SMALL_FILE:
                raise UserError(f"has more than {SMALL_FILE} bytes, so it is none")
            return data

        return self._persist(name, "", read, FIRST_TRIES)

    def read(self, name: str, start: int, size: int) -> Iterator[bytes]:
        """Yield the bytes of a file from ``start`` to ``size``, never more than ``RANGE`` at once.

        Args:
            name: A file of this folder.
            start: First byte that is wanted.
            size: Bytes that the whole file must have.

        Raises:
            ValueError: It is missing, of another size, or refused, or the connection drops again
                and again.
            Stopped: ``stop`` was set.
        """
        file: Any = None

        def read_on(failures: int) -> bytes:
            nonlocal file
            if file is None or failures:
                if file is not None:
                    file.close()
                file = None  # should the next line fail
                file = self._open(name)
                if (found := getattr(file, "size", None)) not in (None, size):
                    raise UserError(
                        f"has {found} bytes, but {size} by its manifest; was the set replaced? "
                        "Copy it there again, manifest.json last"
                    )
            if file.tell() != start:
                file.seek(start)
            wanted = min(max(RANGE >> 2 * failures, SMALL_RANGE), size - start)
            if not (data := file.read(wanted)):
                raise OSError("no bytes came")
            return data

        try:
            while start < size:
                data = self._persist(name, f" at byte {start} of {size}", read_on)
                start += len(data)
                yield data
        finally:
            if file is not None:
                file.close()

    def _open(self, name: str) -> Any:
        return self._fs.open(f"{self.path}/{name}", "rb", block_size=RANGE, cache_type="none")

    def _persist(self, name: str, where: str, call: Callable[[int], T], tries: int = TRIES) -> T:
        """Return ``call(failures so far)``, called up to ``tries`` times."""
        problem = ""
        for failures in range(tries):
            self.check_open()
            try:
                return call(failures)
            except Exception as error:  # each package raises its own
                # No traceback goes on from here: its messages may hold the password.
                final, text = _verdict(error)
                problem = self._redact(text)
            if final:
                raise UserError(f"{self}/{name}: {problem}")
            if failures < tries - 1:
                self._stop.wait(BACKOFF_S * 2**failures)
        raise UserError(
            f"{self}/{name}: the connection failed {tries} times in a row{where} ({problem}); "
            "check network and server, then start again: what has come is kept"
        )

    def _redact(self, text: object) -> str:
        """Return the text as one line, without the secrets of this URL."""
        line = " ".join(str(text).split())
        for secret in self._secrets:
            line = line.replace(secret, HIDDEN)
        return line


class Stopped(RuntimeError):
    """Reading was given up because the reader is being closed."""


def _verdict(error: BaseException) -> tuple[bool, str]:
    """Tell whether to give up at once, and say what is wrong."""
    cause = error.__cause__
    # fsspec's HTTP has one error for all that keeps it from a file, a server that is down too.
    from_http = type(cause).__module__.startswith("aiohttp") or isinstance(cause, TimeoutError)
    if cause is not None and from_http:
        error = cause
    status = getattr(error, "status", None) or getattr(error, "code", None)
    name = type(error).__name__
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return True, (
            "is not there; check the address, and whether the set was copied as a whole "
            "(manifest.json and all shards)"
        )
    if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in name:
        return True, f"no permission to read it ({error}); {CREDENTIALS}"
    if isinstance(error, ValueError):
        if re.search(r"range requests|seek streaming", str(error)):
            why = f"the server must know range requests ({error}); use another, or copy the set"
            return True, why
        return True, str(error)
    return False, f"{name}: {error}"
