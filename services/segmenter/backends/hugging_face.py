"""Models in the layout of the Hugging Face hub, loaded by transformers (``regionsearch[hf]``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from regionsearch.errors import Kind, RegionSearchError, invalid
from services.segmenter.backends.base import ModelFiles
from services.segmenter.backends.checkpoints import read_weights

CONFIG, WEIGHTS_FILE = "config.json", "model.safetensors"
FAMILY_OF_TYPE = {
    "sam3_video": "sam3",
    "sam_hq": "sam_hq",
}  # SAM 3's published folder is that of its video model
_REMEDY = "give a folder as it is on the Hugging Face hub, or pull it again with `regionsearch models pull`"


def family_of(folder: Path) -> str:
    """The family of the model in a folder with a ``config.json``.

    Raises:
        RegionSearchError: DATA_LOSS when the file cannot be read, INVALID_ARGUMENT for other kinds of models.
    """
    path = folder / CONFIG
    try:
        kind = json.loads(path.read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"is not the configuration of a model ({error!r})") from error
    if kind not in FAMILY_OF_TYPE:
        raise invalid(
            "model",
            f"{path} describes a model of the type {kind!r}; those that are served are "
            f"{', '.join(FAMILY_OF_TYPE)}",
        )
    return FAMILY_OF_TYPE[kind]


def load_pretrained(class_name: str, files: ModelFiles) -> Any:
    """Loads one of transformers' models, with the weights of a file that may hold those of others, too.

    Args:
        class_name: As transformers exports it.
        files: A model with a folder.

    Raises:
        RegionSearchError: DATA_LOSS when tensors are missing or of other shapes, FAILED_PRECONDITION when
            transformers is not installed.
    """
    transformers = import_transformers(files)
    assert files.folder is not None
    weights = read_weights(files)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it reports tensors of other models, and draws a progress bar
    transformers.logging.disable_progress_bar()
    try:
        model, found = getattr(transformers, class_name).from_pretrained(
            None,
            config=transformers.AutoConfig.from_pretrained(files.folder, local_files_only=True),
            state_dict=weights,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (RuntimeError, ValueError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise _damaged(files.weights, f"does not fit {files.folder / CONFIG} ({reason})") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    missing = sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])})
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise _damaged(
            files.weights,
            f"does not fit {files.folder / CONFIG}: {missing[0]} is missing or of another shape{more}",
        )
    return model.eval()


def check_compile(files: ModelFiles, compile_model: bool) -> None:
    """Refuses to compile, which is not tried with transformers' models.

    Raises:
        RegionSearchError: FAILED_PRECONDITION.
    """
    if compile_model:
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION,
            f"compile is set, and {files.variant} runs in transformers, uncompiled; unset compile",
            field="compile",
        )


def import_transformers(files: ModelFiles) -> Any:
    """The package.

    Raises:
        RegionSearchError: FAILED_PRECONDITION when it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION,
            f"{files.variant} needs the transformers package: pip install 'regionsearch[hf]'",
            field="model",
        ) from error
    return transformers


def load_tokenizer(files: ModelFiles) -> Any:
    """The tokenizer in a model's folder.

    Raises:
        RegionSearchError: DATA_LOSS when it is missing or cannot be read.
    """
    transformers, folder = import_transformers(files), Path(str(files.folder))
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise _damaged(folder, "does not hold a tokenizer")  # transformers would make an empty one
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise _damaged(folder, f"does not hold a tokenizer that can be read ({reason})") from error


def _damaged(path: Path, problem: str) -> RegionSearchError:
    return RegionSearchError(Kind.DATA_LOSS, f"{path} {problem}; {_REMEDY}", field="model")
