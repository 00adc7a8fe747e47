"""Images at another size: bicubic and Lanczos filters that widen with a reduction, so that nothing aliases.

Both are what Pillow does on single channels of floats: pixels are areas, so nothing moves, weights add up to 1 also at
the border, and overshoot is kept.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Size = tuple[int, int]


def bicubic(images: Tensor, size: Size) -> Tensor:
    """Bring (b, c, H, W) images to a size (height, width) with Keys' bicubic filter, a = -1/2; has a gradient.

    Source: Keys 1981, IEEE Trans. ASSP 29(6).
    """
    return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)


def lanczos(images: Tensor, size: Size) -> Tensor:
    """Bring (b, c, H, W) images to a size (height, width) with a Lanczos filter of 3 lobes, in float32.

    Source: Duchon 1979, J. Applied Meteorology 18.
    """
    height, width = size
    planes = [
        np.array(Image.fromarray(plane).resize((width, height), Image.Resampling.LANCZOS))
        for plane in images.detach().cpu().float().flatten(0, 1).numpy()
    ]
    resized: Tensor = torch.from_numpy(np.stack(planes)).unflatten(0, images.shape[:2])
    return resized.to(images)
