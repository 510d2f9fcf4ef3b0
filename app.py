"""ROME Explorer: `streamlit run app.py`."""

from pages.shared import frame

frame.run()
