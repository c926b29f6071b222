"""Settings of the processes that run a model; without torch, so that checking them takes no time."""

from __future__ import annotations

from pydantic import Field

from regionsearch.images import ImageLimits
from services.runtime.settings import MIB, ServiceSettings


class ModelServiceSettings(ServiceSettings):
    """Base of the settings of a process that runs a model on images."""

    threads: int = Field(0, ge=0, description="CPU threads per model operation; 0: torch's default.")
    max_image_bytes: int = Field(32 * MIB, gt=0, description="Bytes of one encoded image.")
    max_image_pixels: int = Field(50_000_000, gt=0, description="Pixels of one image.")

    @property
    def image_limits(self) -> ImageLimits:
        """Limits of the images that are read."""
        return ImageLimits(self.max_image_bytes, self.max_image_pixels, self.process)
