from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import headscope as hs
from headscope.commands.methods import build, heads_of
from headscope.commands.steer import steer
from headscope.errors import CheckpointError, HeadscopeError, PromptError, RequestError
from headscope.interventions.continuation import compare_continuations
from headscope.interventions.knockout import KnockOut
from headscope.interventions.pasta import PASTA
from headscope.models.tiny import tiny

PROMPT = "The name is: bivq. The word is: cojx. The answer:"
POSITION = {"bivq": 5, "cojx": 11}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hs.data.organism("llama", seed=0).save(tmp_path_factory.mktemp("steer") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return hs.load(folder)


@pytest.fixture(scope="module")
def heads() -> str:
    return ",".join(f"{layer}.{head}" for layer, head in hs.data.organism("llama", seed=0).planted["retrieval"])


def run(folder: Path, *words: str, prompt: str = PROMPT) -> Any:
    app = typer.Typer()
    app.command()(steer)
    fixed = ["--model", str(folder), "--prompt", prompt, "--max-new-tokens", "3"]
    return CliRunner().invoke(app, [*fixed, *words], catch_exceptions=False, env={"COLUMNS": "160", "NO_COLOR": "1"})


@pytest.mark.parametrize("wanted", ["bivq", "cojx"])
def test_pasta_makes_the_model_read_the_region(folder: Path, heads: str, wanted: str) -> None:
    """Both words stand behind a colon, and the planted heads read them alike; steered, they read the one named."""
    result = run(folder, "pasta", "--heads", heads, "--region", wanted, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["steered"]["text"].strip().startswith(wanted)
    assert found["regions"] == {"region": {"positions": [POSITION[wanted]], "text": wanted}}
    assert found["kl_first_token"] > 0.3
    assert found["methods"][0]["alpha"] == 0.01


def test_one_of_the_two_regions_changes_the_text(folder: Path, heads: str) -> None:
    parted = {
        wanted: json.loads(run(folder, "pasta", "--heads", heads, "-r", wanted, "--json").stdout)
        for wanted in ("bivq", "cojx")
    }
    assert sorted(found["diverges"] is None for found in parted.values()) == [False, True]
    found = next(found for found in parted.values() if found["diverges"] is not None)
    assert found["diverges"] == 0
    assert found["base"]["gain"] < 0 < found["steered"]["gain"]
    shown = run(folder, "pasta", "--heads", heads, "-r", found["regions"]["region"]["text"]).stdout
    assert "The texts part at token 1." in shown
    assert "▸" in shown
    assert f"{found['steered']['gain']:+.2f} nats" in shown


def test_numbers_are_those_of_plain_runs(model: Any) -> None:
    """Every log-probability, by one pass over prompt and text: nothing here is found in the prefill alone."""
    prompt = model.prompt("{prompt}", prompt=PROMPT)
    prompt = prompt.with_regions({"region": prompt.find("cojx")})
    method = PASTA(region=("region",), alpha=0.2, generated="rest")
    found = compare_continuations(model, prompt, method, max_new_tokens=4)
    for part in (found.base, found.steered):
        whole = model.prompt_from_ids([*prompt.ids, *part.ids], {"region": prompt.positions("region")})
        for edits, values in (((), part.base), ((method,), part.steered)):
            with model.edited(*edits):
                rows = model.run(whole).logits[0].double().log_softmax(-1)
            expected = [float(rows[len(prompt) - 1 + i, token]) for i, token in enumerate(part.ids)]
            np.testing.assert_allclose(values, expected, atol=2e-4)
        assert part.gain == pytest.approx((part.steered - part.base).sum())
    base = model.run(prompt, logits="last").logits[0, -1].double().log_softmax(-1)
    with model.edited(method):
        steered = model.run(prompt, logits="last").logits[0, -1].double().log_softmax(-1)
    assert found.kl == pytest.approx(float((steered.exp() * (steered - base)).sum()), abs=1e-4)


def test_a_neutral_method_changes_nothing_and_is_told_so(folder: Path) -> None:
    found = json.loads(run(folder, "pasta", "-r", "cojx", "--set", "alpha=1", "--json").stdout)
    assert found["base"] == found["steered"]
    assert found["base"]["gain"] == found["kl_first_token"] == 0
    assert found["diverges"] is None
    assert any("changed no log-probability" in note for note in found["notes"])
    assert "The texts are the same." in run(folder, "pasta", "-r", "cojx", "--set", "alpha=1").stdout


def test_sinks_that_are_not_there_are_told(folder: Path) -> None:
    found = json.loads(run(folder, "act", "--set", "threshold=0.99", "--json").stdout)
    assert any("found no key" in note for note in found["notes"])


def test_saved_and_applied_again(folder: Path, heads: str, tmp_path: Path) -> None:
    edit = tmp_path / "edit.json"
    first = json.loads(run(folder, "pasta", "--heads", heads, "-r", "cojx", "--out", str(edit), "--json").stdout)
    assert first["edit"] == str(edit)
    again = json.loads(run(folder, "--edit", str(edit), "-r", "cojx", "--json").stdout)
    assert {**again, "edit": None} == {**first, "edit": None}
    other = hs.data.organism("llama", seed=1).save(tmp_path / "other")
    with pytest.raises(CheckpointError, match="made for"):
        run(other, "--edit", str(edit), "-r", "cojx")
    with pytest.raises(RequestError, match="no region 'region'"):
        run(folder, "--edit", str(edit))


def test_regions_by_name_and_occurrence(folder: Path, heads: str) -> None:
    words = ("knockout", "--heads", heads, "-r", "source=bivq", "-r", "target=answer:", "--json")
    found = json.loads(run(folder, *words).stdout)
    assert found["steered"]["text"].strip().startswith("cojx")
    assert found["methods"][0]["source"] == ["source"]
    assert found["methods"][0]["target"] == ["target"]
    twice = "The name is: bivq. The name is: cojx. The answer:"
    for which, positions in (("0", "first"), ("-1", "last")):
        words = ("pasta", "-r", "The name is", "--occurrence", which, "--json")
        assert json.loads(run(folder, *words, prompt=twice).stdout)["regions"]["region"]["text"] == "The name is", (
            positions
        )
    with pytest.raises(PromptError, match="out of range"):
        run(folder, "pasta", "-r", "The name is", "--occurrence", "2", prompt=twice)
    with pytest.raises(PromptError, match="does not hold 'kwef'"):
        run(folder, "pasta", "-r", "kwef")


def test_braces_in_a_prompt_are_text(folder: Path) -> None:
    found = json.loads(
        run(folder, "pasta", "-r", "{cojx}", "--json", prompt="The {word} is: {cojx}. The answer:").stdout
    )
    assert found["regions"]["region"]["text"] == "{cojx}"


def test_prompt_from_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text(PROMPT + "\n")
    words = ("zerotuning", "--json")
    assert run(folder, *words, prompt=f"@{tmp_path / 'prompt.txt'}").stdout == run(folder, *words).stdout
    with pytest.raises(RequestError, match="cannot be read"):
        run(folder, *words, prompt="@/no/such/file")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(RequestError, match="is empty"):
        run(folder, *words, prompt=f"@{tmp_path / 'empty.txt'}")


def test_chat(folder: Path) -> None:
    with pytest.raises(PromptError, match="no chat template"):
        run(folder, "zerotuning", "--chat")
    with pytest.raises(PromptError, match="needs chat=True"):
        run(folder, "zerotuning", "--system", "Be brief.")


def test_wrong_usage(folder: Path) -> None:
    assert run(folder).exit_code == 2
    assert run(folder, "pasta", "--edit", "edit.json").exit_code == 2
    assert run(folder, "pasta", "--max-new-tokens", "0").exit_code == 2
    for words, message in (
        (("pastta", "-r", "cojx"), "Did you mean 'pasta'"),
        (("lofit",), "headscope tune lofit"),
        (("temperature", "-r", "cojx"), "not about a region"),
        (("pasta",), "Give --region"),
        (("pasta", "-r", "cojx", "--set", "alpha=much"), "'much' is not a number"),
        (("pasta", "-r", "cojx", "--set", "alhpa=1"), "Did you mean 'alpha'"),
        (("pasta", "-r", "cojx", "--set", "mode=exlude"), "not one of exclude, include, generation"),
        (("pasta", "-r", "cojx", "--set", "alpha"), "field=value"),
        (("pasta", "-r", "cojx", "--set", "alpha=-1"), "alpha"),
        (("pasta", "-r", "cojx", "--heads", "99.0"), "layers of this model"),
        (("pasta", "-r", "cojx", "--heads", "many"), "neither 'all'"),
        (("pasta", "-r", "cojx", "--heads", "none.parquet"), "no file"),
    ):
        with pytest.raises(HeadscopeError, match=message):
            run(folder, *words)


def test_settings_are_read_as_their_fields_are(model: Any) -> None:
    def made(name: str, *settings: str, **options: Any) -> Any:
        return build(name, settings, model=model, **options)

    assert made("pasta", "alpha=0.05", "generated=rest", region="a", heads="1.2,L0H3").heads == ((0, 3), (1, 2))
    assert made("pasta", region=["a", "b"]).region == ("a", "b")
    assert made("pasta", "region=a,3").region == ("a", 3)
    assert made("knockout", "layers=1-3,5", region=["source", "target"]) == KnockOut(
        ("source",), ("target",), layers=(1, 2, 3, 5)
    )
    assert made("knockout", region="fact").source == ("fact",)
    assert made("knockout", "active=no", region="fact").active is False
    assert made("temperature", "temperature=0.5,2", heads="0.1,0.2").temperature == (0.5, 2.0)
    assert made("zerotuning", "stack=none").stack is None
    assert made("act", "layers=none", region="ignored").layers is None
    assert made("pine", region=["a", "b"]).segments == ("a", "b")
    assert made("pasta", region="a", heads=[(0, 1)]).heads == ((0, 1),)


def test_heads_of_a_file(model: Any, tmp_path: Path) -> None:
    from tests.interventions.test_profile import ranked

    path = ranked([3, 1, 2, 0], fingerprint=model.fingerprint).save(tmp_path / "heads.parquet")
    assert heads_of(str(path), model, 2) == ((0, 3), (0, 1))
    with pytest.raises(RequestError, match="--top"):
        heads_of(str(path), model)
    other = ranked([3, 1], fingerprint="other").save(tmp_path / "other.parquet")
    with pytest.raises(RequestError, match="weights differ"):
        heads_of(str(other), model, 1)
    assert heads_of("all", model) == "all"
    assert heads_of("2.*", model) == tuple((2, head) for head in range(6))
    assert heads_of("1-2.*,L3H0", model) == (*((layer, head) for layer in (1, 2) for head in range(6)), (3, 0))


def test_a_text_that_ends_where_the_other_goes_on() -> None:
    from headscope.interventions.continuation import _parted

    assert _parted((1, 2), (1, 2)) is None
    assert _parted((1, 2), (1, 2, 3)) == 2
    assert _parted((1, 2), (2, 2)) == 0


def test_nothing_to_compare() -> None:
    model = hs.load(tiny("llama"), validate=False)
    with pytest.raises(RequestError, match="nothing to compare"):
        compare_continuations(model, model.prompt_from_ids([1, 5, 7]))


def test_methods_that_learn_from_the_model(model: Any) -> None:
    made: Any = build("ablation", ["mode=mean"], heads="0.1,2.3", model=model)
    assert set(made.values) == {(0, 1), (2, 3)}
    zero: Any = build("ablation", ["neurons=1.7,2.9", "mlps=3"], region="ignored", model=model)
    assert (zero.neurons, zero.mlps, zero.heads, zero.region) == (((1, 7), (2, 9)), (3,), (), ())
    masked: Any = build("ablation", ["mode=mask"], heads="0.1", region="fact", model=model)
    assert masked.region == ("fact",)
    found: Any = build("var", ["dimensions=3,7", "tau=9"], region="fact", model=model)
    assert (found.dimensions, found.tau, found.region) == ((3, 7), 9.0, "fact")
