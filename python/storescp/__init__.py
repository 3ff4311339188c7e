"""A DICOM Storage SCP: durable files, one record per instance, success only when both are safe."""

from storescp._core import __version__
from storescp.record import Record

__all__ = ["Record", "__version__"]
