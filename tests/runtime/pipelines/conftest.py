"""Puts the small models of structure alone beside the tests that ask diffusers' pipelines about them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
