"""The source text's file: raw, compressed, and one to spoil."""

from pathlib import Path

import pytest

from tests.data.sources.source_text_files import write_text


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only."""
    return write_text(tmp_path_factory.mktemp("raw") / "faces.h5py")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the text writes it. Read-only."""
    path = tmp_path_factory.mktemp("packed") / "faces.h5py"
    return write_text(path, compression="gzip", compression_opts=9)


@pytest.fixture
def path(raw: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    (tmp_path / "faces.h5py").write_bytes(raw.read_bytes())
    return tmp_path / "faces.h5py"
