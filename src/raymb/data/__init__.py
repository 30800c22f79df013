"""Where training rows come from, and the files that Bridge reads them from. Imports no framework."""

from raymb.data.prepare import write_rows
from raymb.data.rows import Rows
from raymb.data.sources import load_rows

__all__ = ["Rows", "load_rows", "write_rows"]
