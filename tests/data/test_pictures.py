from __future__ import annotations

import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgeexport.data.pictures import FolderStore, Pictures, ZipStore, decode
from edgeexport.errors import DataError
from tests.data.conftest import picture, pictures, write_zip


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_read_as_zipfile_reads_them(tmp_path: Path, method: int) -> None:
    path = write_zip(tmp_path / "a.zip", pictures("a", range(3)), method)
    store = ZipStore(path)
    with zipfile.ZipFile(path) as archive:
        assert all(store.read(name) == archive.read(name) for name in archive.namelist())


def test_pictures_are_rgb_uint8_and_sorted(tmp_path: Path) -> None:
    found = Pictures(ZipStore(write_zip(tmp_path / "a.zip", pictures("a", range(4)))))
    assert found.classes == ("cat", "dog")
    assert [found[i][1] for i in range(4)] == [0, 0, 1, 1]
    assert found[0][0].shape == (6, 5, 3)
    assert found[0][0].dtype == np.uint8
    assert np.array_equal(found[0][0], np.random.default_rng(1).integers(0, 256, (6, 5, 3), dtype=np.uint8))


def test_a_corrupt_picture_is_named(tmp_path: Path) -> None:
    members = pictures("a", range(3)) | {"a/cat/bad.png": picture(7)[:40]}
    found = Pictures(ZipStore(write_zip(tmp_path / "a.zip", members)))
    with pytest.raises(DataError, match=r"a/cat/bad\.png: not readable as a picture"):
        found[found.members.index("a/cat/bad.png")]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_byte_in_a_member_is_noticed(tmp_path: Path, method: int) -> None:
    path = write_zip(tmp_path / "a.zip", {"a/cat/1.png": picture(1)}, method)
    content = bytearray(path.read_bytes())
    content[80] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a/cat/1\.png: damaged"):
        ZipStore(path).read("a/cat/1.png")


def test_a_size_lie_is_noticed(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a/cat/1.png": b"0" * 5000})
    store = ZipStore(path)
    store.members["a/cat/1.png"].file_size = 100
    with pytest.raises(DataError, match="size or CRC"):
        store.read("a/cat/1.png")


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a/cat/1.png": b"0"})
    store = ZipStore(path)
    store.members["a/cat/1.png"].file_size = 2**40
    with pytest.raises(DataError, match="at most"):
        store.read("a/cat/1.png")


def test_a_truncated_zip_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", pictures("a", range(2)))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="not readable as a zip"):
        ZipStore(path)


def test_a_picture_without_a_class_folder_is_refused_unless_it_calibrates(tmp_path: Path) -> None:
    store = ZipStore(write_zip(tmp_path / "a.zip", {"1.png": picture(1)}))
    with pytest.raises(DataError, match=r"1\.png has no label"):
        Pictures(store)
    assert Pictures(store, labelled=False)[0][1] is None


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures"):
        Pictures(FolderStore(tmp_path))


def test_gray_and_palette_pictures_become_rgb() -> None:
    import io

    from PIL import Image

    for mode in ("L", "P", "RGBA", "CMYK"):
        stream = io.BytesIO()
        Image.new(mode, (4, 3)).save(stream, "TIFF")
        assert decode(stream.getvalue(), name="x").shape == (3, 4, 3)


def test_sixteen_bit_pictures_are_refused() -> None:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.new("I;16", (4, 3)).save(stream, "PNG")
    with pytest.raises(DataError, match="more than 8 bits"):
        decode(stream.getvalue(), name="x")


def test_threads_share_one_source(tmp_path: Path) -> None:
    found = Pictures(ZipStore(write_zip(tmp_path / "a.zip", pictures("a", range(20)))))
    expected = [found[i][0] for i in range(20)]
    wrong: list[int] = []

    def read() -> None:
        wrong.extend(i for i in range(20) if not np.array_equal(found[i][0], expected[i]))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.real
def test_real_pictures_have_their_classes(real_data: Path) -> None:
    found = Pictures(ZipStore(real_data / "cifar10" / "test.zip"))
    assert len(found) == 5000
    assert found.classes[0] == "airplane"
    assert found[4999][1] == 9
    assert found[0][0].shape == (32, 32, 3)
