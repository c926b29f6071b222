"""The weights that we know, and those that open_clip knows: some 200, all on the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass

from regionsearch.errors import Kind, RegionSearchError, invalid

SEGMENT_ANYTHING = "https://dl.fbaipublicfiles.com/segment_anything"
SEGMENT_ANYTHING_2 = "https://dl.fbaipublicfiles.com/segment_anything_2/092824"
MOBILE_SAM = "https://github.com/ChaoningZhang/MobileSAM/raw/f706ad9c4eb7f219c00d9050e46328518ffb65d2"
HUB = "https://huggingface.co"
WORKING_BYTES = 1 << 30


@dataclass(frozen=True)
class Weights:
    """One file of published weights.

    Attributes:
        model: The name that a service's `model` setting takes.
        file: Its name in the models folder.
        url: Where it is published.
        sha256: Its digest, hexadecimal. None if unknown: then a download is compared with what the server
            announces, its digest is written next to it, and later checks compare with that.
        licence: Licence of the weights.
        size: Size of the file in bytes; None if unknown.
        tag: open_clip's name of these weights among those of the model; empty for other models.
        fallback: The same weights in another file, for publishers that do not have this one.
        repositories: On the Hugging Face hub, whose tokenizer or configuration belongs to it.
        repository_file: The file that tells whether a repository is on this machine.
    """

    model: str
    file: str
    url: str
    sha256: str | None
    licence: str
    size: int | None = None
    tag: str = ""
    fallback: Weights | None = None
    repositories: tuple[str, ...] = ()
    repository_file: str = "tokenizer_config.json"

    @property
    def memory_bytes(self) -> int | None:
        """Memory of a process with this model: the file twice while it is loaded, torch, and a batch."""
        return None if self.size is None else 2 * self.size + WORKING_BYTES


@dataclass(frozen=True)
class Profile:
    """A pair of models that go together; `pocket` is bundled, the others are pulled once.

    Attributes:
        segmenter: The segmenter's `model` setting.
        embedder: The embedder's `model` setting.
        purpose: For whom it is.
    """

    name: str
    segmenter: str
    embedder: str
    purpose: str

    @property
    def weights(self) -> tuple[Weights, ...]:
        """The files that it needs; none for bundled models."""
        return tuple(WEIGHTS[model] for model in (self.segmenter, self.embedder) if model in WEIGHTS)

    @property
    def memory_bytes(self) -> int:
        """Memory that segmenter and embedder need together."""
        return sum(weights.memory_bytes or WORKING_BYTES for weights in self.weights) or 2 * WORKING_BYTES


def _segment_anything(variant: str, file: str, size: int, sha256: str) -> Weights:
    return Weights(f"sam_{variant}", file, f"{SEGMENT_ANYTHING}/{file}", sha256, "Apache-2.0", size)


def _segment_anything_2(name: str, size: int, sha256: str) -> Weights:
    model = f"sam2.1_hiera_{name}"
    return Weights(model, f"{model}.pt", f"{SEGMENT_ANYTHING_2}/{model}.pt", sha256, "Apache-2.0", size)


def _repository(model: str, repository: str, licence: str) -> Weights:
    url = f"{HUB}/{repository}/resolve/main/model.safetensors"
    return Weights(
        model,
        f"{model}.safetensors",
        url,
        None,
        licence,
        repositories=(repository,),
        repository_file="config.json",
    )


def _open_clip(
    model: str,
    tag: str,
    repository: str,
    revision: str,
    size: int | None,
    sha256: str,
    licence: str = "MIT",
) -> Weights:
    file = f"open_clip_{model.lower().replace('-', '_')}_{tag}.safetensors"
    url = f"{HUB}/{repository}/resolve/{revision}/open_clip_model.safetensors"
    return Weights(model, file, url, sha256, licence, size, tag)


WEIGHTS = {
    weights.model: weights
    for weights in (
        _segment_anything(
            "vit_b",
            "sam_vit_b_01ec64.pth",
            375_042_383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        _segment_anything(
            "vit_l",
            "sam_vit_l_0b3195.pth",
            1_249_524_607,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        _segment_anything(
            "vit_h",
            "sam_vit_h_4b8939.pth",
            2_564_550_879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
        Weights(
            "mobile_sam",
            "mobile_sam.pt",
            f"{MOBILE_SAM}/weights/mobile_sam.pt",
            "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            "Apache-2.0",
            40_728_226,
        ),
        _segment_anything_2(
            "tiny", 156_008_466, "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69"
        ),
        _segment_anything_2(
            "small", 184_416_285, "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38"
        ),
        _segment_anything_2(
            "base_plus", 323_606_802, "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5"
        ),
        _segment_anything_2(
            "large", 898_083_611, "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318"
        ),
        _repository("sam_hq_vit_b", "syscv-community/sam-hq-vit-base", "Apache-2.0"),
        _repository("sam_hq_vit_l", "syscv-community/sam-hq-vit-large", "Apache-2.0"),
        _repository("sam_hq_vit_h", "syscv-community/sam-hq-vit-huge", "Apache-2.0"),
        _repository("sam3", "facebook/sam3", f"SAM License; gated: accept it at {HUB}/facebook/sam3"),
        _open_clip(
            "MobileCLIP2-S0",
            "dfndr2b",
            "timm/MobileCLIP2-S0-OpenCLIP",
            "095906d28bf54d7584dc411e8ffe448f34289e05",
            None,
            "ab91a1a0c4330d6b1913e24d5035dfdea15423316aaec649610c6b1c6ddd0e95",
            "Apple Machine Learning Research Model: research only",
        ),
        _open_clip(
            "ViT-B-32",
            "laion2b_s34b_b79k",
            "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
            "1a25a446712ba5ee05982a381eed697ef9b435cf",
            605_143_316,
            "ac4f8c4b88af6d963118cbf40ad93176d092abbedfcb752601ae1866352656e6",
        ),
        _open_clip(
            "ViT-H-14",
            "laion2b_s32b_b79k",
            "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
            "1c2b8495b28150b8a4922ee1c8edee224c284c0c",
            3_944_517_836,
            "0084e75319a50ad85ef45377bad5bc38f2f58824459eb690048d51c9f8863be5",
        ),
    )
}

PROFILES = {
    profile.name: profile
    for profile in (
        Profile("pocket", "pocket", "pocket", "first run, tests: bundled, no download, a small world"),
        Profile(
            "fast",
            "mobile_sam",
            "MobileCLIP2-S0",
            "photographs, on a laptop; MobileCLIP2 is for research only",
        ),
        Profile("base", "sam_vit_b", "ViT-B-32", "photographs, on a laptop or a small GPU"),
        Profile("large", "sam_vit_h", "ViT-H-14", "photographs, on a server with GPUs"),
    )
}


def profile(name: str) -> Profile:
    """The profile of that name.

    Raises:
        RegionSearchError: INVALID_ARGUMENT naming those that there are.
    """
    if name not in PROFILES:
        raise invalid("profile", f"there is no profile {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


PREFIX = "open_clip:"
SAFE_FILE, FILE = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"


def split_open_clip(model: str) -> tuple[str, str]:
    """Name and tag of ``[open_clip:]NAME[:TAG]`` or ``NAME/TAG``; the tag may be empty."""
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
