import gc
import mmap
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ganray.data import reader as reader_module
from ganray.data.format import Manifest
from ganray.data.integrity import verify_shards
from ganray.data.reader import ShardedDataset
from ganray.data.sources.celeba import CelebA
from ganray.data.writer import write_shards
from tests.data.conftest import SHARD_1, flip, gathered


def test_both_ways_of_mapping_gather_the_same_across_shards(shards_folder: Path):
    joined, apart = ShardedDataset(shards_folder), ShardedDataset(shards_folder, side_by_side=False)
    assert joined._mapping.joined is not None
    assert apart._mapping.joined is None
    ids = [149, 0, 70, 69, 70, 139, 140, 0]
    assert torch.equal(gathered(joined, ids), gathered(apart, ids))
    assert torch.equal(gathered(joined, ids)[2], gathered(joined)[70])


def test_large_memory_pages_map_shards_one_by_one(shards_folder: Path, monkeypatch):
    monkeypatch.setattr(mmap, "PAGESIZE", 16384)
    assert ShardedDataset(shards_folder)._mapping.joined is None


def huge_page_advice(folder: Path) -> dict[str, bool]:
    """Return whether huge pages are advised for any mapping of each shard of a folder, by name."""
    advice, path = {}, Path()
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            path = Path(line.split(maxsplit=5)[-1])
        elif line.startswith("VmFlags:") and path.parent == folder:
            advice[path.name] = advice.get(path.name, False) or " hg" in line
    return advice


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages of files are Linux's")
def test_shards_can_be_mapped_in_huge_pages(source: CelebA, tmp_path: Path, monkeypatch):
    # 152 * 152 * 3 * 64 bytes are 1083 pages: the second shard does not begin at a huge page.
    write_shards(source, tmp_path, size=152, images=128, rows_per_shard=64, processes=1)
    reader, apart = ShardedDataset(tmp_path), ShardedDataset(tmp_path, side_by_side=False)
    joined, shards = reader._mapping.joined, Manifest.read(tmp_path).shards
    assert joined is not None
    for number, shard in enumerate(shards):
        with h5py.File(tmp_path / shard.name) as file:
            images = file["images"]
            assert isinstance(images, h5py.Dataset)
            start = images.id.get_offset()
        address = joined.ctypes.data + number * 64 * 152 * 152 * 3
        assert (address - start) % 2**21 == 0
        assert shard.bytes - shard.num_bytes < 2**21 + 2**15  # little more than that is wasted
    assert torch.equal(gathered(reader), gathered(apart))

    enabled = Path("/sys/kernel/mm/transparent_hugepage")
    if enabled.exists():
        assert huge_page_advice(tmp_path) == dict.fromkeys([shard.name for shard in shards], True)
    del reader, apart, joined
    gc.collect()
    memory = 2 * 128 * 152 * 152 * 3  # too little for both shards
    monkeypatch.setattr("ganray.data.mapping.free_bytes", lambda: memory)
    reader = ShardedDataset(tmp_path)
    assert huge_page_advice(tmp_path) == dict.fromkeys([shard.name for shard in shards], False)
    assert len(reader) == 128


@pytest.mark.parametrize("options", [{}, {"threads": 2}, {"verify": "first-touch"}])
def test_gather_refuses_what_does_not_fit(shards_folder: Path, options: dict):
    reader = ShardedDataset(shards_folder, **options)
    for ids in ([150], [-1], [*range(149), 2**40]):
        with pytest.raises(ValueError, match="there are 150"):
            gathered(reader, ids)
    with pytest.raises(ValueError, match="must be contiguous uint8"):
        reader.read_batch(np.arange(2), torch.empty(2, 64, 64, 3))
    gathered(reader, [])


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_file_stays_open_and_a_dropped_reader_gives_its_memory_back(folder: Path):
    def mapped() -> bool:
        return str(folder) in Path("/proc/self/maps").read_text()

    reader = ShardedDataset(folder)
    assert mapped()
    links = [path for path in Path("/proc/self/fd").iterdir() if path.exists()]
    assert not any(str(folder) in str(path.resolve()) for path in links)
    del reader
    assert not mapped()


def test_a_forked_process_reads_on(shards_folder: Path):
    reader = ShardedDataset(shards_folder)
    expected = gathered(reader, [70])[0]
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if torch.equal(gathered(reader, [70])[0], expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("side_by_side", [True, False])
def test_a_pickled_reader_opens_the_files_itself(shards_folder: Path, side_by_side: bool):
    reader = ShardedDataset(shards_folder, side_by_side=side_by_side)
    text = pickle.dumps(reader)
    assert len(text) < 1000
    copy = pickle.loads(text)
    assert (copy._mapping.joined is None) == (reader._mapping.joined is None)
    assert torch.equal(gathered(copy), gathered(reader))


def test_another_process_takes_a_pickled_reader(shards_folder: Path):
    reader = ShardedDataset(shards_folder)
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer)._mapping.joined.sum())"
    root = Path(reader_module.__file__).parents[2]
    said = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(reader), capture_output=True, cwd=root
    )
    assert int(said.stdout) == gathered(reader).sum().item()


def test_a_read_only_folder_can_be_read(source: CelebA, folder: Path):
    for path in (*folder.iterdir(), folder):
        path.chmod(path.stat().st_mode & 0o555)
    assert len(gathered(ShardedDataset(folder))) == 150
    assert verify_shards(folder).num_images == 150
    write_shards(source, folder, size=64)
    folder.chmod(0o755)


def test_verify_finds_nothing_wrong_with_a_good_set(shards_folder: Path):
    assert verify_shards(shards_folder) == Manifest.read(shards_folder)


def test_verify_names_the_shard_and_the_rows_of_a_flipped_bit(folder: Path):
    flip(folder / SHARD_1, row=65)
    flip(folder / "shard-00002.h5", row=0)
    ShardedDataset(folder)  # opening reads no pixel
    with pytest.raises(ValueError, match=r"^.*$") as error:
        verify_shards(folder)
    assert "shard-00001.h5 is damaged in rows 64-69; shard-00002.h5 is damaged in rows 0-9" in str(
        error.value
    )


def test_verify_notices_a_changed_label(folder: Path):
    with h5py.File(folder / SHARD_1, "r+") as file:
        attributes = file["attributes"]
        assert isinstance(attributes, h5py.Dataset)
        attributes[0, 0] ^= 1
    with pytest.raises(ValueError, match=r"shard-00001\.h5: is damaged in its header or labels"):
        verify_shards(folder)


def test_labels_can_be_read_while_another_thread_reads_a_batch(squares, monkeypatch):
    """A conditional run does so; both may fetch, check and drop shards."""
    reader = ShardedDataset(squares, verify="first-touch")
    inside, prepare = [], reader._prepare

    def slow(ids):
        inside.append(ids)
        assert len(inside) == 1
        time.sleep(0.02)
        inside.pop()
        prepare(ids)

    monkeypatch.setattr(reader, "_prepare", slow)
    ids, out = np.arange(10), torch.empty(10, *reader.image_shape, dtype=torch.uint8)
    with ThreadPoolExecutor(1) as pool:
        gathered = [pool.submit(reader.read_batch, ids, out) for _ in range(5)]
        labels = [reader.annotations(ids).labels for _ in range(5)]
        for done in gathered:
            done.result()
    np.testing.assert_array_equal(labels, [ids % 2] * 5)
