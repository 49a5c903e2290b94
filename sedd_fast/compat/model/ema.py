"""model.ema: the moving average of ``sedd_fast``, whose interface is the original's."""

from sedd_fast.models.ema import ExponentialMovingAverage

__all__ = ["ExponentialMovingAverage"]
