"""The scripts of `bench/` import each other as plain modules."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "bench"))
