"""Weights of an OpenCLIP model, from a publisher on this machine to the vectors of a running service."""

import json

import grpc
import open_clip
import pytest
import torch
from safetensors.torch import save
from typer.testing import CliRunner

from regionsearch.cli import app
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.models.catalog import WEIGHTS, Weights
from regionsearch.tensors import tensor_from_proto
from regionsearch.v1 import embed_pb2, embed_pb2_grpc
from services.embedder.backends.open_clip import build
from services.embedder.service import embedder, find_model
from services.embedder.settings import EmbedderSettings
from services.runtime.server import serving
from tests.embedder.conftest import CONFIG, EMBED
from tests.models.conftest import models, publisher  # noqa: F401 (fixtures)

NAME = "ViT-tiny-test"


@pytest.fixture
def published(publisher, models, monkeypatch, tmp_path):  # noqa: F811
    """A tiny CLIP that open_clip and the catalogue know, in the file format of the published ones."""
    (tmp_path / f"{NAME}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(tmp_path / f"{NAME}.json")
    torch.manual_seed(1)
    state = build(CONFIG).state_dict()
    publisher.data = save({name: value.half().contiguous() for name, value in state.items()})
    publisher.announce = publisher.digest
    weights = Weights(
        NAME, "open_clip_tiny.safetensors", f"{publisher.url}/hub/model.safetensors", None, "MIT", tag="tiny"
    )
    monkeypatch.setitem(WEIGHTS, NAME, weights)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, NAME, {"tiny": {}})
    return publisher


def pull() -> str:
    """What the command prints, or why it failed."""
    answer = CliRunner().invoke(app, ["models", "pull", NAME])
    return answer.output if answer.exit_code == 0 else str(answer.exception)


async def test_from_a_broken_download_to_vectors(published, models):  # noqa: F811
    with pytest.raises(RegionSearchError, match=f"models pull {NAME}") as missing:
        find_model(NAME)
    assert missing.value.kind is Kind.NOT_FOUND
    published.drop_after = 1_500_000
    assert "pull again" in pull()
    assert str(models / "open_clip_tiny.safetensors") in "".join(pull().split())
    assert int(published.requests[-1]["range"].removeprefix("bytes=").removesuffix("-")) > 0

    settings = EmbedderSettings(model=NAME, port=0, device="cpu", drain_delay_s=0)
    async with (
        serving(settings, [EMBED], embedder(settings)) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = embed_pb2_grpc.EmbedServiceStub(channel)
        model = (await stub.GetModel(embed_pb2.EmbedServiceGetModelRequest())).model
        assert (model.variant, model.weights_digest) == (NAME, published.digest)
        answer = await stub.EmbedTexts(embed_pb2.EmbedTextsRequest(texts=["a mug"]))
    reference = build(CONFIG)
    open_clip.load_checkpoint(reference, str(models / "open_clip_tiny.safetensors"))
    tokens = open_clip.SimpleTokenizer(context_length=16)(["a mug"])
    expected = reference.eval().encode_text(tokens, normalize=True).detach().numpy()
    assert tensor_from_proto(answer.vectors, "vectors") == pytest.approx(expected, abs=1e-5)


def test_weights_that_have_changed_since_their_download_are_refused(published, models):  # noqa: F811
    pull()
    path = models / "open_clip_tiny.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # still a file that loads
    path.write_bytes(data)
    with pytest.raises(RegionSearchError, match="is damaged") as caught:
        find_model(NAME)
    assert caught.value.kind is Kind.DATA_LOSS
    assert "is damaged" in pull()


def test_a_download_with_a_wrong_digest_is_never_installed(published, models):  # noqa: F811
    published.announce = "0" * 64
    assert "thrown away" in pull()
    assert not (models / "open_clip_tiny.safetensors").exists()
