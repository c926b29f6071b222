"""The weights that we know, and the profiles that are made of them."""

from __future__ import annotations

from dataclasses import dataclass

from regionsearch.errors import invalid

SEGMENT_ANYTHING = "https://dl.fbaipublicfiles.com/segment_anything"
SEGMENT_ANYTHING_2 = "https://dl.fbaipublicfiles.com/segment_anything_2/092824"
OPEN_CLIP = "https://huggingface.co/laion"


@dataclass(frozen=True)
class Weights:
    """One file of published weights.

    Attributes:
        model: The name that a service's `model` setting takes.
        file: Its name in the models folder.
        url: Where it is published.
        sha256: Its digest, hexadecimal. None where it is not known for sure: then a download is compared
            with what the server announces, its digest is written beside it, and later checks compare
            with that.
        licence: Of the weights.
    """

    model: str
    file: str
    url: str
    sha256: str | None
    licence: str


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


def _segment_anything(variant: str, file: str, sha256: str) -> Weights:
    return Weights(f"sam_{variant}", file, f"{SEGMENT_ANYTHING}/{file}", sha256, "Apache-2.0")


def _segment_anything_2(size: str, sha256: str) -> Weights:
    model = f"sam2.1_hiera_{size}"
    return Weights(model, f"{model}.pt", f"{SEGMENT_ANYTHING_2}/{model}.pt", sha256, "Apache-2.0")


def _open_clip(model: str, file: str, repository: str) -> Weights:
    url = f"{OPEN_CLIP}/{repository}/resolve/main/open_clip_model.safetensors"
    return Weights(model, file, url, None, "MIT")


WEIGHTS = {
    weights.model: weights
    for weights in (
        _segment_anything(
            "vit_b",
            "sam_vit_b_01ec64.pth",
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        _segment_anything(
            "vit_l",
            "sam_vit_l_0b3195.pth",
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        _segment_anything(
            "vit_h",
            "sam_vit_h_4b8939.pth",
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
        _segment_anything_2("tiny", "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69"),
        _segment_anything_2("small", "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38"),
        _segment_anything_2("base_plus", "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5"),
        _segment_anything_2("large", "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318"),
        _open_clip(
            "ViT-B-32", "open_clip_vit_b_32_laion2b_s34b_b79k.safetensors", "CLIP-ViT-B-32-laion2B-s34B-b79K"
        ),
        _open_clip(
            "ViT-H-14", "open_clip_vit_h_14_laion2b_s32b_b79k.safetensors", "CLIP-ViT-H-14-laion2B-s32B-b79K"
        ),
    )
}

PROFILES = {
    profile.name: profile
    for profile in (
        Profile("pocket", "pocket", "pocket", "first run, tests: bundled, no download, a small world"),
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
