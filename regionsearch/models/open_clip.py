"""The weights that open_clip knows: some 200, all of them on the Hugging Face hub."""

from __future__ import annotations

from regionsearch.errors import Kind, RegionSearchError, invalid
from regionsearch.models.catalog import HUB, WEIGHTS, Weights

PREFIX = "open_clip:"
SAFE_FILE, FILE = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"


def split_open_clip(model: str) -> tuple[str, str]:
    """Name and tag of ``[open_clip:]NAME[:TAG]`` or ``NAME/TAG``; the tag is empty where there is none."""
    name, _, tag = model.removeprefix(PREFIX).replace("/", ":", 1).partition(":")
    return name, tag.lower().replace("-", "_")


def open_clip_weights(name: str, tag: str) -> Weights:
    """The published weights of an OpenCLIP model.

    Args:
        name: The architecture, as open_clip calls it.
        tag: Which weights of it.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for an unknown name or tag, naming those that there are;
            FAILED_PRECONDITION when open_clip is not installed.
    """
    known = WEIGHTS.get(name)
    if known is not None and tag in ("", known.tag):
        return known
    try:
        import open_clip
    except ImportError as error:
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION,
            f"{PREFIX}{name} needs the package open_clip: pip install 'regionsearch[embedder]'",
        ) from error
    config = open_clip.get_model_config(name)
    if config is None:
        raise invalid("model", f"{name!r} is not a model of open_clip's; give a name such as ViT-B-32")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not tag and len(tags) == 1:
        tag = tags[0]
    if tag not in tags:
        choice = ", ".join(f"{PREFIX}{name}:{other}" for other in tags) or "none"
        raise invalid("model", f"{name} has no weights {tag!r}; there are {choice}")
    folder, _, file = open_clip.get_pretrained_cfg(name, tag)["hf_hub"].rpartition("/")
    text = config["text_cfg"]
    repositories = {text[key] for key in ("hf_tokenizer_name", "hf_model_name") if key in text}
    other = file or FILE
    stem = f"open_clip_{name}_{tag}".lower().replace("-", "_")

    def weights(suffix: str, published: str, fallback: Weights | None) -> Weights:
        return Weights(
            f"{PREFIX}{name}:{tag}",
            stem + suffix,
            f"{HUB}/{folder}/resolve/main/{published}",
            None,
            f"see {HUB}/{folder}",
            tag=tag,
            fallback=fallback,
            repositories=tuple(sorted(repositories)),
        )

    pickled = weights("." + other.rpartition(".")[2], other, None)
    safe = SAFE_FILE if other == FILE else other.rpartition(".")[0] + ".safetensors"
    return weights(".safetensors", safe, pickled)
