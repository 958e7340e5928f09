"""Where published models are on the Hub. Framework-free."""

_SIZES = ("small", "medium", "large", "melody", "melody-large")
KEYS = {  # short names
    **{name: f"facebook/musicgen-{name}" for size in _SIZES for name in (size, f"stereo-{size}")},
    "micro-jungle": "pharoAIsanders420/micro-musicgen-jungle",
    "micro-acid": "pharoAIsanders420/micro-musicgen-acid",
}
CODEC = "facebook/encodec_32khz"
TEXT_ENCODER = "google-t5/t5-base"
