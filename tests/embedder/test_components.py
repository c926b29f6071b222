"""Loading, templates, cache, run lengths, buckets."""

import functools
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip import SimpleTokenizer
from safetensors.torch import load_file, save_file

from regionsearch.errors import Kind, RegionSearchError
from services.embedder.backends import load_backend, open_clip, tokenizers
from services.embedder.backends.base import ModelFiles
from services.embedder.backends.open_clip import pack_rows, unpack_rows
from services.embedder.engine import buckets
from services.embedder.options import TextTemplates
from services.embedder.service import find_model


def test_templates_hold_the_text():
    assert TextTemplates.NONE.fill("mug") == ["mug"]
    assert len(TextTemplates.SIMPLE.fill("mug")) == 7
    assert len(TextTemplates.FULL.fill("mug")) == 80
    assert all("{mug}" in sentence for sentence in TextTemplates.SIMPLE.fill("{mug}"))


@given(st.integers(1, 300))
def test_buckets_waste_at_most_a_third(most):
    sizes = buckets(most)
    assert sizes[-1] == most
    for count in range(1, most + 1):
        bucket = next(size for size in sizes if size >= count)
        assert bucket <= max(count * 1.5, 2)


def test_a_missing_embedder_model_names_the_command_to_pull_it(monkeypatch, tmp_path):
    monkeypatch.setenv("REGIONSEARCH_MODELS_DIR", str(tmp_path))
    with pytest.raises(RegionSearchError, match="models pull") as error:
        find_model("ViT-B-32")
    assert error.value.kind is Kind.NOT_FOUND
    assert find_model("ViT-B-32/laion2b_s34b_b79k", random_weights=True).variant == "ViT-B-32"
    with pytest.raises(RegionSearchError, match="models pull open_clip:ViT-B-32:openai") as error:
        find_model("ViT-B-32/openai")
    assert error.value.kind is Kind.NOT_FOUND
    with pytest.raises(RegionSearchError, match="is not a model"):
        find_model("ViT-X-99")
    with pytest.raises(RegionSearchError, match=r"say which ones.*ViT-L-14:openai"):
        find_model("ViT-L-14")


def test_the_pocket_model_loads_and_is_what_its_manifest_says():
    files = find_model("pocket")
    backend = load_backend(files, torch.device("cpu"), "fp32", False)
    crops = torch.zeros(2, 3, backend.size, backend.size)
    assert backend.embed_crops(crops).shape == (2, backend.dimension)
    assert len(files.digest) == 64


def test_damaged_and_foreign_weights_are_refused(manifest, tmp_path):
    for file in manifest.parent.iterdir():
        shutil.copy(file, tmp_path)
    weights = tmp_path / "embedder.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(RegionSearchError, match="is not the one that") as error:
        find_model(str(tmp_path / manifest.name))
    assert error.value.kind is Kind.DATA_LOSS
    weights.write_bytes(whole[:1000])
    description = json.loads(manifest.read_text())
    description["sha256"] = hashlib.sha256(whole[:1000]).hexdigest()
    (tmp_path / manifest.name).write_text(json.dumps(description))
    with pytest.raises(RegionSearchError, match="does not hold the weights of tiny") as error:
        load_backend(find_model(str(tmp_path / manifest.name)), torch.device("cpu"), "fp32", False)
    assert error.value.kind is Kind.DATA_LOSS
    description = json.loads(manifest.read_text())
    description["model_config"]["embed_dim"] = 128
    weights.write_bytes(whole)
    (tmp_path / manifest.name).write_text(json.dumps(description))
    with pytest.raises(RegionSearchError, match="does not hold the weights of tiny"):
        load_backend(find_model(str(tmp_path / manifest.name)), torch.device("cpu"), "fp32", False)


WORDS = st.text(st.characters(codec="utf-8"), max_size=30) | st.sampled_from(["cat", "\N{CAT FACE}", "猫"])


@functools.cache
def clip():
    """CLIP's own tokenizer."""
    return SimpleTokenizer(context_length=16)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(WORDS, max_size=40).map(" ".join), min_size=1, max_size=4))
def test_texts_become_the_tokens_of_clip(backend, texts):
    tokens, cut = backend.tokenize(texts)
    assert tokens.equal(clip()(texts))
    assert cut == [len(clip().encode(text)) > 14 for text in texts]


def test_very_long_texts_are_tokenized_up_to_the_context(backend):
    letters = np.random.default_rng(0).choice(list("abcdefghij"), 5_000)
    texts = [
        "".join(letters),
        "word " * 2_000,
        "\N{CAT FACE}" * 5_000,
        "猫" * 5_000,
        "a " + " " * 5_000 + "b",
    ]
    tokens, cut = backend.tokenize(texts)
    assert cut == [True, True, True, True, False]
    assert tokens[1:].equal(clip()(texts[1:]))


def test_the_word_cache_of_the_tokenizer_is_bounded(backend, monkeypatch):
    monkeypatch.setattr(tokenizers, "WORDS_KEPT", 50)
    for number in range(10):
        backend.tokenize([f"{chr(97 + number)}{chr(97 + k)}thing" for k in range(20)])
    assert len(backend._tokenizer._tokenizer.cache) <= 50 + 20
    assert backend.tokenize(["a mug"])[0].equal(clip()(["a mug"]))


def test_reduced_precision_stays_close(manifest, backend):
    reduced = load_backend(find_model(str(manifest)), torch.device("cpu"), "bf16", False)
    crops = torch.randn(8, 3, backend.size, backend.size, generator=torch.Generator().manual_seed(0))
    cosine = (backend.embed_crops(crops) * reduced.embed_crops(crops)).sum(-1)
    assert reduced.embed_crops(crops).dtype == torch.float32
    assert cosine.min() > 0.99


def test_every_size_of_a_batch_is_compiled(monkeypatch):
    """torch gives up after eight graphs unless it is told not to, and the largest batches come last."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 8, "layers": 1, "width": 8, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    files = ModelFiles("open_clip", "tiny", config, {}, None)
    model = open_clip.load(files, torch.device("cpu"), "fp32", True)
    for size in buckets(64):
        model.embed_crops(torch.zeros(size, 3, 8, 8))
    assert len(graphs) == len(buckets(64)) == 12


def test_a_table_without_its_zero_rows_is_the_same_table(manifest, tmp_path):
    """Loaded, the packed file is the model that the whole file is, and known by the same digest."""
    whole = load_file(manifest.with_suffix(".safetensors"))
    table = whole["token_embedding.weight"]
    table[100:49000] = 0
    packed = pack_rows(whole, "token_embedding.weight")
    assert len(packed["token_embedding.weight"]) == 100 + 408
    assert unpack_rows(whole).keys() == whole.keys()
    for name, value in unpack_rows(packed).items():
        assert torch.equal(value, whole[name])

    description = json.loads(manifest.read_text())
    backends = []
    for place, weights in enumerate((whole, packed)):
        folder = tmp_path / str(place)
        folder.mkdir()
        save_file(weights, folder / "embedder.safetensors")
        content = (folder / "embedder.safetensors").read_bytes()
        known = {"same_as": backends[0].files.digest} if backends else {}
        sha256 = hashlib.sha256(content).hexdigest()
        (folder / "embedder.json").write_text(json.dumps(description | known | {"sha256": sha256}))
        backends.append(
            load_backend(find_model(str(folder / "embedder.json")), torch.device("cpu"), "fp32", False)
        )
    tokens, _ = backends[0].tokenize(["cat"])
    assert torch.equal(*(backend.embed_tokens(tokens) for backend in backends))
    assert backends[0].files.digest == backends[1].files.digest


@pytest.mark.parametrize("rows", [[0], [2], [1, 2], []])
def test_the_last_row_says_how_many_there_are(rows):
    table = torch.zeros(3, 2)
    table[rows] = 1
    assert torch.equal(unpack_rows(pack_rows({"t": table}, "t"))["t"], table)
