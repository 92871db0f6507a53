"""Any way that a run can come about ends in the same bytes, and everything that can go wrong says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headscope.attention.requests import Weighted
from headscope.errors import CheckpointError, DataError, HeadscopeError, ModelError, RequestError
from headscope.probes import runner
from headscope.probes.runner import rank_all, unite


@pytest.fixture(autouse=True)
def _same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "now", lambda: "2030-01-01T00:00:00+00:00")


def saved(scores: Any, path: Path) -> bytes:
    return scores.save(path).read_bytes()


@pytest.fixture
def undisturbed(fakes: Any, tmp_path: Path) -> bytes:
    found = rank_all([fakes.Mass(), fakes.Both()], fakes.Model(), {"fakes": fakes.data()})
    return saved(found["both-probe"], tmp_path / "undisturbed.parquet")


def test_samples_run_once_for_all_probes(fakes: Any) -> None:
    model = fakes.Model()
    found = rank_all([fakes.Both(), fakes.Mass()], model, {"fakes": fakes.data()})
    assert list(found) == ["both-probe", "mass-probe"]
    assert model.runs == [(f"s{i}", ("mass", "entropy")) for i in range(8)]
    assert found["mass-probe"].top(1) == [(1, 2)]


def test_a_probe_can_have_data_of_its_own(fakes: Any) -> None:
    model = fakes.Model()
    found = rank_all(
        [fakes.Mass(), fakes.Both()], model, {"fakes": fakes.data(), "both-probe": fakes.data(2, name="other")}
    )
    assert len(model.runs) == 10
    assert found["both-probe"].provenance["data"]["name"] == "other"


def test_provenance_says_where_numbers_come_from(fakes: Any) -> None:
    data = fakes.data()
    provenance = fakes.Mass(threshold=0.7).rank(fakes.Model(), data, seed=5).provenance
    assert provenance["parameters"] == {"threshold": 0.7}
    assert provenance["model"]["fingerprint"] == "f" * 64
    assert provenance["data"] == {"name": "fakes", "parameters": {}, "hash": data.hash, "n": 8}
    assert (provenance["seed"], provenance["dtype"], provenance["probe"]) == (5, "float32", "mass-probe")
    assert {"torch", "transformers", "headscope"} <= set(provenance["versions"])
    assert any("4 independent sources" in note for note in provenance["notes"])


def test_interrupted_run_resumes_to_the_same_bytes(fakes: Any, tmp_path: Path, undisturbed: bytes) -> None:
    def interrupt(task: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    probes, model, data = [fakes.Mass(), fakes.Both()], fakes.Model(), {"fakes": fakes.data()}
    with pytest.raises(KeyboardInterrupt):
        rank_all(probes, model, data, out=tmp_path / "run", progress=interrupt)
    seen: list[tuple[str, int, int]] = []
    found = rank_all(probes, model, data, out=tmp_path / "run", progress=lambda *step: seen.append(step))
    assert seen == [("fakes", i, 8) for i in range(3, 9)]
    assert len(model.runs) == 8
    assert saved(found["both-probe"], tmp_path / "resumed.parquet") == undisturbed


def test_workers_meet_in_a_folder(fakes: Any, tmp_path: Path, undisturbed: bytes) -> None:
    probes, data = [fakes.Mass(), fakes.Both()], {"fakes": fakes.data()}
    for i in (2, 0):
        assert rank_all(probes, fakes.Model(), data, out=tmp_path / "run", worker=(i, 3)) == {}
    last = fakes.Model()
    found = rank_all(probes, last, data, out=tmp_path / "run", worker=(1, 3))
    assert [name for name, _ in last.runs] == ["s1", "s4", "s7"]
    assert saved(found["both-probe"], tmp_path / "merged.parquet") == undisturbed


@pytest.mark.parametrize("worker", [(1, 1), (-1, 2), (0, 0)])
def test_worker_numbers_are_checked(fakes: Any, tmp_path: Path, worker: tuple[int, int]) -> None:
    with pytest.raises(HeadscopeError, match="worker"):
        rank_all([fakes.Mass()], fakes.Model(), {"fakes": fakes.data()}, out=tmp_path, worker=worker)


def test_workers_need_a_folder(fakes: Any) -> None:
    with pytest.raises(HeadscopeError, match="out="):
        rank_all([fakes.Mass()], fakes.Model(), {"fakes": fakes.data()}, worker=(0, 2))


def test_killed_process_resumes_to_the_same_bytes(fakes: Any, tmp_path: Path, undisturbed: bytes) -> None:
    """SIGKILL leaves no time to tidy up."""
    script = tmp_path / "slow.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import importlib.util, sys, time
            spec = importlib.util.spec_from_file_location("fakes", {str(Path(__file__).with_name("conftest.py"))!r})
            fakes = importlib.util.module_from_spec(spec)
            sys.modules["fakes"] = fakes
            spec.loader.exec_module(fakes)
            from headscope.probes.runner import rank_all
            data = fakes.FakeData(tuple(
                fakes.FakeSample(f"s{{i}}", f"source{{i % 4}}", factors={{"length": i}}) for i in range(8)))
            def progress(task, done, total):
                if done == 4:
                    time.sleep(60)
            rank_all([fakes.MassProbe(), fakes.BothProbe()], fakes.FakeModel(), {{"fakes": data}},
                     out={str(tmp_path / "run")!r}, progress=progress)
            """
        )
    )
    process = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    shards = tmp_path / "run" / "shards" / "fakes"
    deadline = time.monotonic() + 120
    while len(list(shards.glob("*.shard"))) < 4 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(shards.glob("*.shard"))) == 4
    (shards / ".000004.shard.abc.part").write_bytes(b"half")
    model, data = fakes.Model(), fakes.data()
    found = rank_all([fakes.Mass(), fakes.Both()], model, {"fakes": data}, out=tmp_path / "run")
    assert [name for name, _ in model.runs] == ["s4", "s5", "s6", "s7"]
    assert saved(found["both-probe"], tmp_path / "resumed.parquet") == undisturbed


def test_corrupt_shard_is_named_before_anything_runs(fakes: Any, tmp_path: Path) -> None:
    probes, data = [fakes.Mass()], {"fakes": fakes.data()}
    rank_all(probes, fakes.Model(), data, out=tmp_path)
    victim = tmp_path / "shards" / "fakes" / "000005.shard"
    victim.write_bytes(victim.read_bytes()[:-1] + b"\0x")
    model = fakes.Model()
    with pytest.raises(CheckpointError, match=r"000005\.shard is corrupt.*Delete that file.*--fresh"):
        rank_all(probes, model, data, out=tmp_path)
    assert not model.runs
    victim.unlink()
    rank_all(probes, model, data, out=tmp_path)
    assert [name for name, _ in model.runs] == ["s5"]
    victim.write_bytes(b"")
    rank_all(probes, model, data, out=tmp_path, fresh=True)
    assert len(model.runs) == 9


def test_folder_of_another_run_is_refused(fakes: Any, tmp_path: Path) -> None:
    data = {"fakes": fakes.data()}
    rank_all([fakes.Mass()], fakes.Model(), data, out=tmp_path)
    with pytest.raises(CheckpointError, match=r"probes\.mass-probe\.threshold: 0\.9 there, 0\.5 now"):
        rank_all([fakes.Mass(threshold=0.5)], fakes.Model(), data, out=tmp_path)
    with pytest.raises(CheckpointError, match=r"dtype.*\n.*model: \"fff.*there, \"000.*now"):
        rank_all([fakes.Mass()], fakes.Model(fingerprint="0" * 64, dtype="float64"), data, out=tmp_path)
    with pytest.raises(CheckpointError, match=r"data\.fakes"):
        rank_all([fakes.Mass()], fakes.Model(), {"fakes": fakes.data(3)}, out=tmp_path)
    rank_all([fakes.Mass(threshold=0.5)], fakes.Model(), data, out=tmp_path, fresh=True)


def test_seed_does_not_cost_the_shards(fakes: Any, tmp_path: Path) -> None:
    model, data = fakes.Model(), {"fakes": fakes.data(sources=8)}
    first = rank_all([fakes.Mass()], model, data, out=tmp_path)["mass-probe"]
    second = rank_all([fakes.Mass()], model, data, out=tmp_path, seed=1)["mass-probe"]
    assert len(model.runs) == 8
    assert np.array_equal(first.map(), second.map())
    assert not np.array_equal(first.map("ci_low"), second.map("ci_low"))


def test_shards_removed_with_their_record_are_not_mixed(fakes: Any, tmp_path: Path) -> None:
    rank_all([fakes.Mass()], fakes.Model(), {"fakes": fakes.data()}, out=tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(CheckpointError, match="belongs to another run"):
        rank_all([fakes.Mass(threshold=0.5)], fakes.Model(), {"fakes": fakes.data()}, out=tmp_path)


def test_bad_data_is_refused(fakes: Any) -> None:
    model = fakes.Model()
    with pytest.raises(DataError, match="'fakes' is empty"):
        rank_all([fakes.Mass()], model, {"fakes": fakes.data(0)})
    with pytest.raises(DataError, match=r"needs data of kind 'fakes'.*fake"):
        rank_all([fakes.Mass()], model, {"fake": fakes.data()})
    with pytest.raises(DataError, match="'a' occurs twice"):
        rank_all([fakes.Mass()], model, {"fakes": fakes.Data((fakes.Sample("a", "x"), fakes.Sample("a", "y")))})
    with pytest.raises(DataError, match="'a' of 'fakes' is of kind 'texts'"):
        rank_all([fakes.Mass()], model, {"fakes": fakes.Data((fakes.Sample("a", "x", kind="texts"),))})
    with pytest.raises(HeadscopeError, match="no probe"):
        rank_all([], model, {"fakes": fakes.data()})
    with pytest.raises(HeadscopeError, match="'mass-probe' is given twice"):
        rank_all([fakes.Mass(), fakes.Mass(threshold=1)], model, {"fakes": fakes.data()})


def test_numbers_that_are_not_finite_name_the_sample(fakes: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="logits that are NaN or infinite on sample 's3'"):
        rank_all([fakes.Mass()], fakes.Model(logits_nan_on="s3"), {"fakes": fakes.data()}, out=tmp_path)
    assert len(list(tmp_path.rglob("*.shard"))) == 3
    with pytest.raises(DataError, match="mass-probe: 'mass' is not finite on sample 's5'"):
        rank_all([fakes.Mass()], fakes.Model(nan_on="s5"), {"fakes": fakes.data()}, out=tmp_path)


def test_different_requests_of_one_name_are_refused(fakes: Any) -> None:
    with pytest.raises(RequestError, match="'mass-probe' and 'clashing-probe' capture different things as 'mass'"):
        rank_all([fakes.Mass(), fakes.Clashing()], fakes.Model(), {"fakes": fakes.data()})


def test_tensors_in_requests_are_shared_by_identity_only(fakes: Any) -> None:
    x, y = np.zeros((2, 1)), np.ones((2, 1))

    class With(fakes.Mass):  # type: ignore[misc, name-defined]
        def __init__(self, value: Any) -> None:
            object.__setattr__(self, "value", value)

        def requests(self, spec: Any) -> list[Any]:
            return [Weighted(x=self.value)]

    assert len(unite([With(x), With(x)], None)) == 1
    with pytest.raises(RequestError, match="'weighted'"):
        unite([With(x), With(y)], None)


def test_real_probes_share_a_real_model(tmp_path: Path) -> None:
    import headscope as hs
    from headscope.models.tiny import tiny

    model = hs.load(tiny("llama"))
    probes = [hs.probes.find(name) for name in ("previous", "duplicate", "induction")]
    data = {"repeats": hs.data.repeats(model, n=4, length=12)}
    alone = rank_all(probes, model, data)
    assert rank_all(probes, model, data, out=tmp_path / "run", worker=(1, 2)) == {}
    merged = rank_all(probes, model, data, out=tmp_path / "run", worker=(0, 2))
    for name in ("previous", "duplicate", "induction"):
        assert saved(merged[name], tmp_path / "merged.parquet") == saved(alone[name], tmp_path / "alone.parquet")
