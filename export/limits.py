"""What parity asks of a package, by its precision, and where the figures come from.

An SNR in decibels is 20 log10(1 / e), with e the deviation of the error over that of what is right; errors that know nothing of one
another add up in power, e^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

EULER = 0.5772  # 1 + 1/2 + .. + 1/n = ln n + this
IN_SERIES = 2  # layers of a branch: two convolutions of a residual block, an attention's values and projection, a feed-forward's two layers
DEEPEST = 227  # branches of the deepest network, SDXL's U-Net: 70 transformers of three, 17 residual blocks
BLOCK_PEAK, CHANNEL_PEAK = 2.6, 4.2  # deviations: the largest of 64 normal weights, and of 20,000, a channel of a large convolution
ALLOWANCE_DB = 3.0  # trained weights have heavier tails than normal ones, and branches no equal powers: as much noise again
GUIDANCE_DB = 20.0  # guidance g makes sqrt(g^2 + (g-1)^2) of independent errors of its two predictions: at 7.5
# ONNX Runtime's InstanceNormalization adds the numbers of a group up in float32. One of four channels is 117 dB from float64 at 256x256,
# 100 dB at 512x512 and 81 dB at 1024x1024, where torch's is 145; a VAE has twenty to thirty. Of a picture's 255 levels, the 70 dB that are
# asked at 1024x1024 are 0.04 at most.
LARGE_SIDE, DB_PER_DOUBLING = 512, 20.0


@dataclass(frozen=True)
class Limits:
    """What parity asks for.

    `component_snr_db`: of every output of every component. `step_snr_db`: of the latents after every step. A component at 90 dB passes
    errors on: guidance multiplies them (GUIDANCE_DB), and 20 steps may add up coherently (26 dB in the worst case, 13 dB at random), which
    leaves 50. `picture`: the largest difference of a pixel, of 255. `sensitivity`: how far the deviation of (conditioned - unconditioned)
    may be off torch's, relative.
    """

    component_snr_db: float = 90.0
    step_snr_db: float = 50.0
    picture: int = 2
    sensitivity: float = 0.02

    @classmethod
    def of_precision(cls, precision: str, target: str) -> Limits:
        """The limits of a package of that precision for that target."""
        if (precision, target) == ("fp16", "cpu"):
            return HALF_PRODUCTS
        return {"fp32": FP32, "bf16": BF16, "fp16": FP16, "w8": W8, "w4": W4, "a16w8": A16W8}[precision]

    def of_component(self, name: str, pixels: int) -> float:
        """The SNR that is asked of a component whose largest picture has so many pixels: less of a VAE's whose pictures are large."""
        if not name.startswith("vae_"):
            return self.component_snr_db
        doublings = max(0.0, math.log2(math.sqrt(pixels) / LARGE_SIDE))
        return min(self.component_snr_db, FP32.component_snr_db - DB_PER_DOUBLING * doublings)


def rounded_weights_db(bits: int, peak: float, branches: int) -> float:
    """The SNR of a residual network whose weights are rounded to `bits`, at scales that weights of `peak` deviations set.

    A layer: its steps are peak / (2^(bits-1) - 1) deviations of its weights, and a weight is off by a step / sqrt(12). Of inputs in no
    particular direction its output is, relatively, as far off as its weights: by e. A branch passes on the relative error r of what it
    reads, and adds IN_SERIES e^2 to its square. Where branches are of equal power the kth is 1/k of the sum that it enters, so that
    r_k^2 = r_(k-1)^2 + IN_SERIES e^2 / k, and after all r^2 = IN_SERIES e^2 (ln branches + EULER): depth costs little.
    `tests/export/test_limits.py` holds networks against this.
    """
    layer = 20 * math.log10(math.sqrt(12) * (2 ** (bits - 1) - 1) / peak)
    return layer - 10 * math.log10(IN_SERIES * (math.log(branches) + EULER))


FP32 = Limits()
# Rounding two operands to 8 bits gives a product a relative error of 2^-9 x sqrt(2/3) = 1.6e-3, and a layer that sums them as much: 56 dB.
# The errors of independent layers add up in power, so that a network of 100 to 250 products keeps 32 to 36 dB in the worst case, where no
# residual path dampens them. Guidance and 20 steps then cost what they cost in float32, 20 and 13 dB, against steps that shrink the error
# of a latent with its noise. Edges move by a fraction of a pixel, and there a picture may differ by its whole contrast: no limit on pixels
# would say anything, and the score of `runtime.score` takes its place.
BF16 = Limits(component_snr_db=30.0, step_snr_db=15.0, picture=255, sensitivity=0.1)
# Rounding to 11 bits is off by 2^-11 / sqrt(7) of a value on average (uniform over a bit, mantissas uniform over 1 to 2): 75 dB. A U-Net or
# a decoder rounds up to 1,000 values on the way, whose errors add up in power where no residual path dampens them: 45 dB. Guidance costs
# its 20 dB, as in bfloat16 against steps that shrink the error of a latent with its noise.
FP16 = Limits(component_snr_db=45.0, step_snr_db=25.0, picture=16, sensitivity=0.02)
# The target cpu's: operands of 11 bits, each 75 dB off as above, in products of which up to 16 are summed up as float16 numbers
# (runtime/ops/float16.h). The squares of those sums are 8.5 times a product's on average: with the sum of two of them, 11.5 such errors,
# 64 dB for a layer. A network of 100 to 250 products keeps 40 to 44 dB in the worst case, as bfloat16 keeps 32 to 36.
HALF_PRODUCTS = Limits(component_snr_db=40.0, step_snr_db=20.0, picture=32, sensitivity=0.05)
# Weights are off in the same way at every step, but all steps together are one denoising: errors add up to that of one prediction, times
# guidance. Of w4 nothing is left then, and its latents need only have more of torch's than of noise. How loud the prompt is heard is off by
# half the square of noise over the prompt's part: 0.1 where they are 1 to 2; where they are equal, only a prompt that is lost is seen.
_W8, _W4 = rounded_weights_db(8, CHANNEL_PEAK, DEEPEST) - ALLOWANCE_DB, rounded_weights_db(4, BLOCK_PEAK, DEEPEST) - ALLOWANCE_DB
W8 = Limits(component_snr_db=_W8, step_snr_db=_W8 - GUIDANCE_DB, picture=255, sensitivity=0.1)
W4 = Limits(component_snr_db=_W4, step_snr_db=0.0, picture=255, sensitivity=0.5)
# Weights as in w8; activations of 16 bits, twice as far as was measured, show beside them only where their range is wide. The 30 dB are
# set: 3 more than the estimate and its allowance leave the deepest network.
A16W8 = Limits(component_snr_db=30.0, step_snr_db=30.0 - GUIDANCE_DB, picture=255, sensitivity=0.1)
