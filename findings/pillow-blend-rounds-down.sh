#!/usr/bin/env bash
# One would guess that Image.blend(image, pattern, alpha), which Blended's trigger is, gives image + alpha * (pattern - image) to the
# nearest byte, as Image.composite with a mask does and as floats do that are rounded when they are stored.
# It drops what is behind the point: half of all values are one lower, none is higher, 0.45 on average at alpha 0.1. The other
# way round, as blend(pattern, image, 0.9), is the same. Where image and pattern agree nothing moves.
# It matters because a training set that Pillow blended and a trigger that is computed in floats at test time differ in half of the
# values of an image by one, all in the same direction, and not at all where the picture is as the pattern: a detector, or a
# comparison of poisoned with clean images, sees a darkening that is no part of the trigger.
# Versions: pillow 13.0.0, numpy 2.4.6. Source: ImagingBlend (src/libImaging/Blend.c), which casts a float to UINT8.
# Seen 2026-11-30 (all pairs of bytes; share that is lower than rounded, higher; mean difference from the exact value; for composite):
#   alpha 0.051  0.498 0.000 -0.498; 0.000 0.000
#   alpha 0.1    0.500 0.000 -0.450; 0.000 0.000
#   alpha 0.2    0.400 0.000 -0.400; 0.000 0.000
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment pillow==13.0.0 numpy==2.4.6

"$work/venv/bin/python" - <<'PY'
import numpy as np
import PIL
from PIL import Image

print("pillow", PIL.__version__, "numpy", np.__version__)
one = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 256, 1)
two = one.T.copy()
image, pattern = Image.fromarray(one), Image.fromarray(two)
for share in (13 / 255, 0.1, 51 / 255):
    byte = round(share * 255)
    exact, masked = (one + weight * (two.astype(float) - one) for weight in (share, byte / 255))
    mask = Image.new("L", image.size, byte)
    blended = np.asarray(Image.blend(image, pattern, share)).astype(int)
    other = np.asarray(Image.blend(pattern, image, 1 - share)).astype(int)
    composed = np.asarray(Image.composite(pattern, image, mask)).astype(int)
    rounded, rounded_mask = (np.floor(values + 0.5) for values in (exact, masked))
    lower, higher = (blended < rounded).mean(), (blended > rounded).mean()
    wrong = (composed != rounded_mask).mean()
    print(f"alpha {share:.3g}: blend {lower:.3f} lower, {higher:.3f} higher, {(blended - exact).mean():+.3f}; composite {wrong:.3f} off")
    assert 0.35 < lower <= 0.5 and higher == 0 and wrong == 0
    assert (other == blended).mean() > 0.99
    assert (np.asarray(Image.blend(image, image, share)) == one).all()
PY
