"""Object storage: one area of a bucket, a directory or memory, through obstore (the extra ``objects``)."""

from .client import ObjectArea, open_area

__all__ = ["ObjectArea", "open_area"]
