"""Checkpoint layouts: a file of rename and reshape rules per model family; `python -m backends.layouts.convert`."""
