"""A trigger that somebody else's function is: images in, triggered images out."""

from dataclasses import dataclass

from torch import Tensor

from backdoorbench.config.build import imported
from backdoorbench.errors import ConfigError
from backdoorbench.shapes import Images
from backdoorbench.triggers.base import FixedTrigger


@dataclass(frozen=True)
class Called(FixedTrigger):
    """path: `package.module:function` of a function of images (N, 3, H, W) in [0, 1] that returns as many, as large."""

    path: str

    def __call__(self, images: Images) -> Images:
        """The function's images, clipped to [0, 1]; ConfigError where it returns something else than images like those given."""
        found = imported(self.path, "attack.function", "a function of images")(images.clone())
        if not isinstance(found, Tensor) or found.shape != images.shape or found.device != images.device:
            what = (
                f"a tensor {tuple(found.shape)} on {found.device}"
                if isinstance(found, Tensor)
                else type(found).__name__
            )
            raise ConfigError(
                f"attack.function={self.path} returned {what} for images {tuple(images.shape)} on {images.device}; expected a "
                f"tensor of their shape on their device. Correct the function."
            )
        if not bool(found.isfinite().all()):
            raise ConfigError(
                f"attack.function={self.path} returned values that are no finite numbers; expected pixels in [0, 1]. Correct "
                f"the function."
            )
        return found.to(images.dtype).clamp(0, 1)
