"""Data without a framework: audio files, manifests, the codec-code cache, batches. NumPy only."""
