"""Shards are written whole, checked when read, and belong to one run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from headscope.errors import CheckpointError, DataError, OutputError
from headscope.probes.store import Shard, Store, pack, unpack

ARRAYS: dict[str, Any] = {
    "float": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3),
    "double": np.array([np.nan, np.inf, -0.0]),
    "int": np.array(7),
    "flag": np.array([True, False]),
    "text": np.array(["a", "μm\n"]),
    "none": np.empty((0, 3)),
}


def test_arrays_come_back_as_they_were() -> None:
    back = unpack(pack(Shard({"sample": "x"}, ARRAYS)))
    assert back.meta == {"sample": "x"}
    for name, array in ARRAYS.items():
        assert back.arrays[name].dtype == array.dtype
        assert back.arrays[name].shape == array.shape
        np.testing.assert_array_equal(back.arrays[name], array)
        assert back.arrays[name].flags.writeable


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from(["<f4", ">f8", "<i2", ">i8", "u1", "?"]), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)
    )
)
def test_any_plain_array_comes_back(array: Any) -> None:
    back = unpack(pack(Shard({}, {"a": array}))).arrays["a"]
    np.testing.assert_array_equal(back, array)
    assert back.shape == array.shape


def test_equal_content_gives_equal_bytes() -> None:
    assert pack(Shard({"a": 1, "b": 2}, ARRAYS)) == pack(Shard({"b": 2, "a": 1}, dict(reversed(ARRAYS.items()))))


def test_objects_are_not_stored() -> None:
    with pytest.raises(DataError, match="'bad' has type object"):
        pack(Shard({}, {"bad": np.array([{}])}))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_is_noticed(data: st.DataObject) -> None:
    whole = pack(Shard({"sample": "x"}, ARRAYS))
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
    for broken in (flipped, whole[:place]):
        with pytest.raises(ValueError, match=r"begin|hash"):
            unpack(broken)


def test_a_folder_goes_on_with_its_own_run(tmp_path: Path) -> None:
    store = Store.open(tmp_path, {"model": "m"})
    assert store.read("g", "1") is None
    store.write("g", "1", {"x": 1}, ARRAYS)
    shard = Store.open(tmp_path, {"model": "m"}).read("g", "1")
    assert shard is not None
    assert shard.meta["x"] == 1


def test_what_differs_is_listed(tmp_path: Path) -> None:
    Store.open(tmp_path, {"model": "a" * 100, "n": 1, "probes": {"p": {"q": 0.1}}})
    with pytest.raises(CheckpointError) as error:
        Store.open(tmp_path, {"model": "b", "n": 1, "probes": {"r": {}}})
    text = str(error.value)
    assert "…" in text
    assert "probes.p.q: 0.1 there, absent now" in text
    assert "probes.r: absent there, {} now" in text
    assert "\n  n:" not in text
    assert "--fresh" in text


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    Store.open(tmp_path, {})
    for content in ("", "[]", '{"format": "other", "identity": {}}'):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"run\.json is not the record"):
            Store.open(tmp_path, {})


def test_fresh_removes_shards_and_nothing_else(tmp_path: Path) -> None:
    store = Store.open(tmp_path, {"a": 1})
    store.write("g", "1", {}, ARRAYS)
    (tmp_path / "scores.parquet").write_text("mine")
    (tmp_path / "shards" / "notes.txt").write_text("mine too")
    again = Store.open(tmp_path, {"a": 2}, fresh=True)
    assert again.read("g", "1") is None
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["run.json", "scores.parquet", "shards/notes.txt"]


def test_half_written_files_are_swept_when_stale(tmp_path: Path) -> None:
    store = Store.open(tmp_path, {})
    store.write("g", "1", {}, ARRAYS)
    old, young = (tmp_path / "shards" / "g" / f".2.shard.{name}.part" for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 3600,) * 2)
    assert Store.open(tmp_path, {}).read("g", "2") is None
    assert young.exists()
    assert not old.exists()


def test_a_file_in_the_way_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write"):
        Store.open(tmp_path / "file" / "run", {})


def test_a_shard_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    store = Store.open(tmp_path, {})
    store.path("g", "1").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"1\.shard cannot be read"):
        store.read("g", "1")
