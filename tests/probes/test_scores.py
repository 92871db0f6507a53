"""A table of heads is checked once, ranked the same way every time, and survives every file format."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headscope.errors import DataError, HeadscopeError, OutputError
from headscope.probes.formats import content_hash
from headscope.probes.scores import COLUMNS, HeadScores
from headscope.probes.statistics import head_table

SUFFIXES = ["parquet", "json", "csv"]


def table() -> pd.DataFrame:
    values = np.random.default_rng(0).random((12, 3, 4))
    values[:, 1, 2] += 1
    found, _ = head_table(values, [str(i) for i in range(12)], null=values - 0.2, threshold=0.5)
    return found


@pytest.fixture
def scores() -> HeadScores:
    details = {
        "by_factor": pd.DataFrame({"length": [512, 1024], "depth": [0.1, np.nan], "domain": ['é, "q"\n', None]}),
        "nothing": pd.DataFrame({"layer": np.array([], dtype=int), "token": np.array([], dtype=object)}),
        "flags": pd.DataFrame({"active": [True, False], "empty": [None, None]}),
    }
    provenance = {
        "model": {"name": "m", "n_layers": 3, "n_heads": 4},
        "created": "2030-01-01T00:00:00+00:00",
        "notes": ["ä"],
    }
    return HeadScores(table(), "thing", provenance, details)


def same(a: HeadScores, b: HeadScores) -> None:
    pd.testing.assert_frame_equal(a.table, b.table)
    assert (a.probe, a.provenance) == (b.probe, b.provenance)
    assert sorted(a.details) == sorted(b.details)
    for name in a.details:
        pd.testing.assert_frame_equal(a.details[name], b.details[name])


def test_table_is_complete_and_sorted(scores: HeadScores) -> None:
    shuffled = HeadScores(scores.table.sample(frac=1, random_state=0), "thing", scores.provenance)
    assert list(scores.table.columns)[:9] == list(COLUMNS)
    pd.testing.assert_frame_equal(shuffled.table, scores.table)
    assert {name: str(kind) for name, kind in scores.table.dtypes.items() if name in COLUMNS} == COLUMNS
    assert len(scores) == 12


def test_top_and_selected(scores: HeadScores) -> None:
    assert scores.top(1) == [(1, 2)]
    assert scores.selected[0] == (1, 2)
    assert set(scores.selected) == {(1, 2), *scores.selected}
    assert len(scores.top(100)) == 12
    with pytest.raises(HeadscopeError, match=r"top\(0\)"):
        scores.top(0)


def test_ties_rank_by_layer_and_head_and_missing_scores_last() -> None:
    frame = table()
    frame["score"] = [0.5] * 11 + [np.nan]
    assert HeadScores(frame.iloc[::-1], "thing").top(20) == [(i // 4, i % 4) for i in range(11)]
    assert HeadScores(frame, "thing").ranked().iloc[-1]["score"] is not None


def test_one_head(scores: HeadScores) -> None:
    assert scores.head(1, 2)["selected"] is True
    with pytest.raises(HeadscopeError, match=r"no head \(3, 0\).*0 to 2.*0 to 3"):
        scores.head(3, 0)


def test_map(scores: HeadScores) -> None:
    assert scores.map().shape == (3, 4)
    assert scores.map()[1, 2] == scores.head(1, 2)["score"]
    some = HeadScores(scores.table[scores.table["layer"] != 2], "thing", scores.provenance)
    assert np.isnan(some.map("n")[2]).all()
    with pytest.raises(HeadscopeError, match=r"no column 'scor'.*'score'"):
        scores.map("scor")
    with pytest.raises(HeadscopeError, match="holds text"):
        HeadScores(scores.table.assign(kind="x"), "thing").map("kind")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns=["n", "score"]), "lacks the columns score, n"),
        (lambda t: t.iloc[:0], "has no row"),
        (lambda t: pd.concat([t, t.iloc[:1]]), r"Head \(0, 0\) occurs twice"),
        (lambda t: t.assign(score="high"), "wrong type"),
        (lambda t: t.assign(layer=-1), "negative layer"),
        (lambda t: t.assign(keys=[[1, 2]] * len(t)), "'keys' of the table of thing scores mixes text with list"),
    ],
)
def test_bad_tables_are_refused(change: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        HeadScores(change(table()), "thing")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_keep_everything(scores: HeadScores, suffix: str, tmp_path: Path) -> None:
    path = scores.save(tmp_path / f"scores.{suffix}")
    loaded = HeadScores.load(path)
    same(loaded, scores)
    assert content_hash(loaded) == content_hash(scores)
    assert loaded.save(tmp_path / f"again.{suffix}").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_only_the_time_stamp_differs_between_equal_runs(scores: HeadScores, suffix: str, tmp_path: Path) -> None:
    later = {**scores.provenance, "created": "2031-12-31T23:59:59+00:00"}
    second = HeadScores(scores.table, scores.probe, later, scores.details)
    a = scores.save(tmp_path / f"a.{suffix}").read_bytes()
    b = second.save(tmp_path / f"b.{suffix}").read_bytes()
    assert a.replace(b"2030-01-01T00:00:00+00:00", b"2031-12-31T23:59:59+00:00") == b
    assert content_hash(scores) == content_hash(second)


def test_parquet_is_readable_by_anyone(scores: HeadScores, tmp_path: Path) -> None:
    path = scores.save(tmp_path / "scores.parquet")
    frame = pd.read_parquet(path)
    assert frame["score"].tolist() == scores.table["score"].tolist()
    plain = pd.read_csv(scores.save(tmp_path / "scores.csv"))
    assert list(plain.columns) == list(scores.table.columns)
    meta = json.loads((tmp_path / "scores.csv.meta.json").read_text())
    assert meta["provenance"] == scores.provenance


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "flipped"])
def test_damaged_files_are_named(scores: HeadScores, suffix: str, damage: str, tmp_path: Path) -> None:
    path = scores.save(tmp_path / f"scores.{suffix}")
    data = path.read_bytes()
    score = repr(float(scores.table["score"].iloc[5])).encode()
    path.write_bytes(
        {
            "cut": data[: len(data) // 2],
            "empty": b"",
            "foreign": b"layer,head\n1,2\n",
            "flipped": data.replace(score[:6], b"0.9999") if suffix != "parquet" else data.replace(b"thing", b"thong"),
        }[damage]
    )
    with pytest.raises(DataError, match=rf"scores\.{suffix}"):
        HeadScores.load(path)


def test_no_flipped_byte_of_parquet_changes_what_is_read(scores: HeadScores, tmp_path: Path) -> None:
    data = scores.save(tmp_path / "scores.parquet").read_bytes()
    broken = tmp_path / "broken.parquet"
    for place in range(0, len(data), 97):
        broken.write_bytes(data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :])
        try:
            same(HeadScores.load(broken), scores)
        except DataError:
            pass
        except AssertionError:  # the time stamp is the one thing that no hash covers
            assert HeadScores.load(broken).provenance["created"] != scores.provenance["created"]


def test_missing_files_and_unknown_formats(scores: HeadScores, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        HeadScores.load(tmp_path / "none.parquet")
    with pytest.raises(DataError, match="format"):
        HeadScores.load(tmp_path / "none.xlsx")
    with pytest.raises(OutputError, match="format"):
        scores.save(tmp_path / "scores.xlsx")
    path = scores.save(tmp_path / "scores.csv")
    (tmp_path / "scores.csv.meta.json").unlink()
    with pytest.raises(DataError, match=r"meta\.json is missing"):
        HeadScores.load(path)


def test_a_failed_save_leaves_the_old_file(scores: HeadScores, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(OutputError, match="Cannot write"):
        scores.save(blocked / "scores.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_details_bring_their_notes(scores: HeadScores) -> None:
    dose = pd.DataFrame({"k": [1]})
    dose.attrs["notes"] = ["mean ablation: …"]
    more = scores.with_details(dose=dose).with_details(dose=dose)
    assert more.provenance["notes"] == ["ä", "mean ablation: …"]
    assert "dose" not in scores.details


def test_figures_and_reports_are_asked_for_late(scores: HeadScores, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    figures = SimpleNamespace(head_map=lambda given, **options: calls.append((given, options)) or "figure")
    html = SimpleNamespace(write_report=lambda given, path, others: calls.append(others) or Path(path))
    monkeypatch.setitem(sys.modules, "headscope.report.figures", figures)
    monkeypatch.setitem(sys.modules, "headscope.report.html", html)
    assert scores.plot(column="n") == "figure"
    assert calls == [(scores, {"column": "n"})]
    assert scores.report("out.html", [scores]) == Path("out.html")
    assert calls[-1] == [scores]
