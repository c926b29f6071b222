"""Options of everything mode and of region selection, with their rules."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass

from regionsearch.errors import invalid


class Mode(enum.StrEnum):
    """Where everything mode looks."""

    GRID = "grid"
    """At a grid of points, as ``SamAutomaticMaskGenerator`` does."""
    PROPOSALS = "proposals"
    """At what the model's proposer suggests; the options of the grid are ignored."""


@dataclass(frozen=True)
class EverythingOptions:
    """Options of everything mode; names, meaning and defaults are ``SamAutomaticMaskGenerator``'s.

    Attributes:
        points_per_side: Points along one side of the grid.
        pred_iou_thresh: Lowest predicted IoU that is kept; 0 keeps everything.
        stability_score_thresh: Lowest stability score that is kept; 0 keeps everything.
        stability_score_offset: Shift of the mask threshold when the stability score is measured.
        box_nms_thresh: Box IoU above which the worse of two regions of a crop is dropped.
        crop_n_layers: Layers of crops in addition to the whole image; layer i has (2^i)^2 crops.
        crop_nms_thresh: Box IoU above which the worse of two regions of different crops is dropped.
        crop_overlap_ratio: Overlap of neighbouring crops in the first layer, as a fraction of the image's
            shorter side.
        crop_n_points_downscale_factor: Layer i has ``points_per_side / factor**i`` points per side.
        min_mask_region_area: Holes and islands below this many pixels are removed; 0 keeps them.
    """

    points_per_side: int = 32
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    min_mask_region_area: int = 0

    @property
    def crops(self) -> int:
        """Number of crops of all layers, including the whole image."""
        return sum(4**layer for layer in range(self.crop_n_layers + 1))

    @property
    def points(self) -> int:
        """Number of grid points over all crops."""
        return sum(4**layer * self.side(layer) ** 2 for layer in range(self.crop_n_layers + 1))

    def side(self, layer: int) -> int:
        """Grid points per side in a crop of the given layer."""
        return int(self.points_per_side / self.crop_n_points_downscale_factor**layer)

    def check(self, prefix: str = "everything") -> None:
        """Refuses values outside of their range.

        Raises:
            RegionSearchError: INVALID_ARGUMENT, naming the option.
        """
        limits = {
            "points_per_side": (1, 128),
            "pred_iou_thresh": (0, 1),
            "stability_score_thresh": (0, 1),
            "stability_score_offset": (0, 100),
            "box_nms_thresh": (0, 1),
            "crop_n_layers": (0, 4),
            "crop_nms_thresh": (0, 1),
            "crop_overlap_ratio": (0, 0.9),
            "crop_n_points_downscale_factor": (1, 8),
            "min_mask_region_area": (0, 1 << 31),
        }
        _check_ranges(self, limits, prefix)
        if self.points_per_side < self.crop_n_points_downscale_factor**self.crop_n_layers:
            raise invalid(
                f"{prefix}.crop_n_points_downscale_factor",
                "the innermost crops would get no points; lower crop_n_layers or the downscale factor",
            )


class RankBy(enum.StrEnum):
    """By what regions are ranked."""

    QUALITY = "quality"
    """Predicted IoU times stability."""
    AREA = "area"
    """The largest first."""


MAX_PROPOSALS = 300  # points, boxes or masks that a proposer returns for one crop


def planned_points(options: EverythingOptions, mode: Mode) -> int:
    """The number of points a call will ask about; with proposals the most it may ask about."""
    return options.points if mode is Mode.GRID else MAX_PROPOSALS * options.crops


@dataclass(frozen=True)
class SelectionOptions:
    """Which regions of an image are worth indexing.

    Attributes:
        min_side: Shortest side of the box, pixels.
        min_area: Smallest area, pixels.
        max_area_fraction: Largest area, as a fraction of the image.
        min_stability_score: Lowest stability score.
        mask_nms_thresh: Mask IoU above which the worse of two regions is dropped as a near-duplicate.
        max_regions: At most this many regions.
        rank_by: Which regions are the best.
    """

    min_side: int = 8
    min_area: int = 64
    max_area_fraction: float = 0.95
    min_stability_score: float = 0.0
    mask_nms_thresh: float = 0.8
    max_regions: int = 64
    rank_by: RankBy = RankBy.QUALITY

    def check(self, prefix: str = "everything.selection") -> None:
        """Refuses values outside of their range.

        Raises:
            RegionSearchError: INVALID_ARGUMENT, naming the option.
        """
        limits = {
            "min_side": (0, 1 << 31),
            "min_area": (0, 1 << 62),
            "max_area_fraction": (0, 1),
            "min_stability_score": (0, 1),
            "mask_nms_thresh": (0, 1),
            "max_regions": (1, 1000),
        }
        _check_ranges(self, limits, prefix)


@dataclass(frozen=True)
class Defaults:
    """What the service does where a request leaves an option unset.

    Attributes:
        everything: Options of everything mode.
        mode: Where everything mode looks.
        zoom: Whether answers to prompts are refined in further passes, see `refine/`.
    """

    everything: EverythingOptions = EverythingOptions()
    mode: Mode = Mode.GRID
    zoom: bool = False


def _check_ranges(
    options: EverythingOptions | SelectionOptions, limits: Mapping[str, tuple[float, float]], prefix: str
) -> None:
    for option, (low, high) in limits.items():
        value = getattr(options, option)
        if not (math.isfinite(value) and low <= value <= high):
            name = f"{prefix}.{option}"
            raise invalid(name, f"{name} is {value}; give a value from {low} to {high}")
