"""Which models' vectors may meet."""

from __future__ import annotations

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.v1 import search_pb2, types_pb2


def same_model(one: types_pb2.ModelInfo, other: types_pb2.ModelInfo) -> bool:
    """Whether vectors of both are comparable; a crop policy that is unspecified agrees with every one."""
    unspecified = types_pb2.CROP_POLICY_UNSPECIFIED
    policies = {one.crop_policy, other.crop_policy} - {unspecified}
    return len(policies) < 2 and all(
        getattr(one, name) == getattr(other, name)
        for name in ("family", "variant", "weights_digest", "dimension")
    )


def without_policy(model: types_pb2.ModelInfo) -> types_pb2.ModelInfo:
    """The model itself, whatever crops it is shown."""
    bare = types_pb2.ModelInfo()
    bare.CopyFrom(model)
    bare.crop_policy = types_pb2.CROP_POLICY_UNSPECIFIED
    return bare


def model_mismatch(collection: search_pb2.Collection, model: types_pb2.ModelInfo) -> RegionSearchError:
    """The error of a collection whose vectors are of another model than the embedder's."""
    return RegionSearchError(
        Kind.MODEL_MISMATCH,
        f"collection {collection.name!r} was made with {describe(collection.model)}, the embedder now serves "
        f"{describe(model)}; start the embedder with the former or make a new collection",
        field="collection",
        metadata={"expected": describe(collection.model), "actual": describe(model)},
    )


def describe(model: types_pb2.ModelInfo) -> str:
    """A model's identity for people."""
    policy = types_pb2.CropPolicy.Name(model.crop_policy).removeprefix("CROP_POLICY_").lower()
    return f"{model.family} {model.variant} ({model.weights_digest[:12]}, {model.dimension}-d, {policy})"
