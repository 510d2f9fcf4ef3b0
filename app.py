"""ROME Explorer: `streamlit run app.py`."""

import os

# Threads that wait by spinning take the cores from everybody else: from the browser on the same machine, from a
# neighbour's program, from each other. Read when torch is imported, so it stands before all else.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")

from pages.shared import frame, journal

journal.begin()
frame.run()
