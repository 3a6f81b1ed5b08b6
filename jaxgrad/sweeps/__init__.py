"""Map a pure function over a labelled grid: compiled, in chunks, over devices, resumable.

The random draws of a cell depend only on its coordinates (`cell_key`). Cutting a grid into chunks,
spreading it over devices, adding values to an axis, reordering, splitting or resuming it changes no
value beyond rounding. `run` writes files if a `store` is passed; a store holds one grid, and
`xarray.concat` joins those of several. The extra `experiments` is required.
"""

from jaxgrad.sweeps._forecast import Forecast
from jaxgrad.sweeps._grid import cell_key
from jaxgrad.sweeps._run import run
from jaxgrad.sweeps._store import MARKER, DamagedStoreError, Variable
from jaxgrad.sweeps._table import open_store

__all__ = ["MARKER", "DamagedStoreError", "Forecast", "Variable", "cell_key", "open_store", "run"]
