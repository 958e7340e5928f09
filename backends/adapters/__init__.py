"""Adapters without a framework: which modules to adapt, how adapters start, and their files."""
