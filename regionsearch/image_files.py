"""Which files of folders and patterns are images, what they are called, and what is left out."""

from __future__ import annotations

import errno
import glob
import itertools
import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from regionsearch.errors import invalid

SUFFIXES = frozenset(
    {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff",
        ".heic", ".heif", ".hif", ".avif",
    }
)  # fmt: skip
# Folders of other programs and systems, in lower case: their thumbnails, indexes and bins.
FOREIGN = frozenset(
    {
        "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "__macosx", "$recycle.bin",
        "system volume information", "lost+found", "ipod photo cache",
    }
)  # fmt: skip
# Images under another suffix are known by their first bytes. TIFF's are not among these: the raw files of
# most cameras begin with them too.
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif", b"avis")  # of HEIF files, after `ftyp`
_NOUNS = ("linked folder", "broken link", "special file")
_MOST_REASONS = 10


@dataclass
class Selection:
    """The image files that paths stand for.

    Attributes:
        files: The images, in order, each once, with the folder that their names begin in.
        left_out: How many files and folders are left out, by reason.
        unreadable: What cannot be looked at, and why: mostly folders, whose files are missing then.
    """

    files: dict[Path, Path] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    unreadable: dict[Path, str] = field(default_factory=dict)

    def named(self) -> list[tuple[str, Path]]:
        """The files with their names: each one's path below the folder that was given.

        Where several folders were given, the name begins with the folder's own, or with as many folders above
        as it takes to tell them apart.
        """
        folders = {root: Path(os.path.abspath(root)) for root in dict.fromkeys(self.files.values())}
        tops = _outermost(folders.values())
        labels = _labels(list(dict.fromkeys(tops.values())))
        prefixes = {
            root: labels[tops[folder]] / folder.relative_to(tops[folder]) for root, folder in folders.items()
        }
        return [
            ((prefixes[root] / file.relative_to(root)).as_posix(), file) for file, root in self.files.items()
        ]

    def summary(self) -> str:
        """What is left out, by reason; empty when that is nothing."""
        if not self.left_out:
            return ""
        most = self.left_out.most_common()
        shown = [
            f"{count} {reason}{'s' if count > 1 and reason in _NOUNS else ''}"
            for reason, count in most[:_MOST_REASONS]
        ]
        if rest := sum(count for _, count in most[_MOST_REASONS:]):
            shown.append(f"{rest} others")
        return f"{self.left_out.total()} left out: {', '.join(shown)}"


def find_images(paths: Iterable[str | Path]) -> Selection:
    """The images that files, folders and patterns stand for.

    A file that is named is taken as it is: the server judges. Of folders and patterns, files are taken that
    have the suffix of an image or begin like one; hidden files, those of other programs, and folders behind
    links are left out.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for a path that does not exist, or when no image is found.
    """
    found = Selection()
    for path in map(Path, paths):
        if os.path.isdir(path):  # unlike Path's own methods it does not raise where permission is missing
            _search(path, path, found)
        elif os.path.lexists(path):
            found.files.setdefault(path, path.parent)
        else:
            _expand(path, found)
    if not found.files and not found.unreadable:
        details = found.summary() or f"looked for {', '.join(sorted(SUFFIXES))}"
        raise invalid("paths", f"there are no images; {details}")
    return found


def _expand(pattern: Path, found: Selection) -> None:
    matches = sorted(glob.glob(str(pattern), recursive=True))
    if not matches:
        raise invalid("paths", f"{pattern} is neither a file nor a folder, and no pattern matches it")
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts)
    root = Path(*fixed)
    for match in map(Path, matches):
        if _foreign(match.relative_to(root).parts):
            found.left_out["of other programs"] += 1
        elif os.path.isdir(match):
            if "**" not in pattern.parts:  # else what is in it is matched too
                _search(match, root, found)
        else:
            _take(match, root, found)


def _search(folder: Path, root: Path, found: Selection) -> None:
    """All files below a folder, those of one folder before those of the folders in it."""
    pending = [folder]
    while pending:
        here = pending.pop()
        folders = []
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            found.unreadable[here] = error.strerror or str(error)
            continue
        for entry in entries:
            if _foreign((entry.name,)):
                found.left_out["of other programs"] += 1
            elif entry.name.startswith("."):
                found.left_out["hidden"] += 1
            elif entry.is_dir(follow_symlinks=False):
                folders.append(here / entry.name)
            elif entry.is_symlink() and os.path.isdir(entry):
                found.left_out["linked folder"] += 1
            else:
                _take(here / entry.name, root, found)
        pending += reversed(folders)


def _take(file: Path, root: Path, found: Selection) -> None:
    try:
        mode = file.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            found.left_out["broken link"] += 1
        else:
            found.unreadable[file] = error.strerror or str(error)
        return
    if not stat.S_ISREG(mode):
        found.left_out["special file"] += 1
    elif file.suffix.lower() in SUFFIXES or _begins_like_an_image(file):
        found.files.setdefault(file, root)
    else:
        found.left_out[file.suffix.lower() or "without a suffix"] += 1


def _foreign(parts: Sequence[str]) -> bool:
    return any(part.lower() in FOREIGN for part in parts)


def _begins_like_an_image(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            start = opened.read(16)
    except OSError:
        return False
    if start.startswith(_BEGINNINGS) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP"):
        return True
    return start[4:8] == b"ftyp" and start[8:12] in _BRANDS


def _outermost(folders: Iterable[Path]) -> dict[Path, Path]:
    """Each folder, and the one of them all that holds it: itself, if no other does."""
    given = set(folders)
    return {
        folder: next((above for above in reversed(folder.parents) if above in given), folder)
        for folder in given
    }


def _labels(folders: Sequence[Path]) -> dict[Path, Path]:
    """What tells folders apart: nothing is needed for one, else as much of each one's end as it takes."""
    if len(folders) == 1:
        return {folders[0]: Path()}
    depth = 1
    while len({folder.parts[1:][-depth:] for folder in folders}) < len(folders):
        depth += 1
    return {folder: Path(*folder.parts[1:][-depth:]) for folder in folders}
