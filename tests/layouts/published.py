"""Names and shapes of the published files, written out from what they hold and not from the rules.

Sources: github.com/SesameAILabs/csm (models.py, torchtune's names), github.com/kyutai-labs/moshi (loaders.py).
"""

import numpy as np

STACKS = {  # layers, width, q rows, k and v rows, MLP width
    "backbone": (16, 2048, 2048, 512, 8192),
    "decoder": (4, 1024, 1024, 256, 8192),
}


def torchtune() -> dict[str, tuple[int, ...]]:
    """The 187 tensors of Sesame's ckpt.pt and model.safetensors."""
    shapes: dict[str, tuple[int, ...]] = {
        "text_embeddings.weight": (128256, 2048),
        "audio_embeddings.weight": (65632, 2048),
        "projection.weight": (1024, 2048),
        "codebook0_head.weight": (2051, 2048),
        "audio_head": (31, 1024, 2051),
    }
    for stack, (layers, width, q, kv, mlp) in STACKS.items():
        shapes[f"{stack}.norm.scale"] = (width,)
        for n in range(layers):
            shapes |= {
                f"{stack}.layers.{n}.attn.q_proj.weight": (q, width),
                f"{stack}.layers.{n}.attn.k_proj.weight": (kv, width),
                f"{stack}.layers.{n}.attn.v_proj.weight": (kv, width),
                f"{stack}.layers.{n}.attn.output_proj.weight": (width, q),
                f"{stack}.layers.{n}.mlp.w1.weight": (mlp, width),
                f"{stack}.layers.{n}.mlp.w2.weight": (width, mlp),
                f"{stack}.layers.{n}.mlp.w3.weight": (mlp, width),
                f"{stack}.layers.{n}.sa_norm.scale": (width,),
                f"{stack}.layers.{n}.mlp_norm.scale": (width,),
            }
    return shapes


def kyutai() -> dict[str, tuple[int, ...]]:
    """The 318 tensors of tokenizer-e351c8d8-checkpoint125.safetensors."""
    shapes: dict[str, tuple[int, ...]] = {
        "downsample.conv.conv.conv.weight": (512, 512, 4),
        "upsample.convtr.convtr.convtr.weight": (512, 1, 4),
    }
    convolutions = {
        "encoder.model.0": (64, 1, 7), "encoder.model.3": (128, 64, 8), "encoder.model.6": (256, 128, 10),
        "encoder.model.9": (512, 256, 12), "encoder.model.12": (1024, 512, 16), "encoder.model.14": (512, 1024, 3),
        "decoder.model.0": (1024, 512, 7), "decoder.model.14": (1, 64, 3),
    }  # fmt: skip
    blocks = {
        "encoder.model.1": 64, "encoder.model.4": 128, "encoder.model.7": 256, "encoder.model.10": 512,
        "decoder.model.3": 512, "decoder.model.6": 256, "decoder.model.9": 128, "decoder.model.12": 64,
    }  # fmt: skip
    for name, width in blocks.items():
        convolutions |= {f"{name}.block.1": (width // 2, width, 3), f"{name}.block.3": (width, width // 2, 1)}
    for name, shape in convolutions.items():
        shapes |= {f"{name}.conv.conv.weight": shape, f"{name}.conv.conv.bias": shape[:1]}
    transposed = {2: (1024, 512, 16), 5: (512, 256, 12), 8: (256, 128, 10), 11: (128, 64, 8)}
    for n, shape in transposed.items():
        name = f"decoder.model.{n}.convtr.convtr"
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[1:2]}
    for half in ("encoder", "decoder"):
        for n in range(8):
            layer = f"{half}_transformer.transformer.layers.{n}"
            shapes |= {f"{layer}.{norm}.{part}": (512,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
            shapes |= {f"{layer}.layer_scale_{part}.scale": (512,) for part in (1, 2)}
            shapes |= {f"{layer}.linear1.weight": (2048, 512), f"{layer}.linear2.weight": (512, 2048)}
            shapes |= {f"{layer}.self_attn.in_proj_weight": (1536, 512)}
            shapes |= {f"{layer}.self_attn.out_proj.weight": (512, 512)}
    for quantizer, codebooks in (("rvq_first", 1), ("rvq_rest", 31)):
        shapes[f"quantizer.{quantizer}.input_proj.weight"] = (256, 512, 1)
        shapes[f"quantizer.{quantizer}.output_proj.weight"] = (512, 256, 1)
        for k in range(codebooks):
            codebook = f"quantizer.{quantizer}.vq.layers.{k}._codebook"
            shapes |= {f"{codebook}.embedding_sum": (2048, 256), f"{codebook}.cluster_usage": (2048,)}
            shapes |= {f"{codebook}._initialized": (1,)}
    return shapes


def pairs_of_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k from transformers' order (first halves, then second) to torchtune's and kyutai's (pairs).

    Row 2 i of a head was row i, row 2 i + 1 was row D / 2 + i.
    """
    head_dim = len(rows) // heads
    order = [
        head * head_dim + half * (head_dim // 2) + i
        for head in range(heads)
        for i in range(head_dim // 2)
        for half in (0, 1)
    ]
    return rows[order]


def torchtune_of(theirs: dict[str, np.ndarray], heads: dict[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    """A transformers checkpoint under Sesame's names; `heads` gives each stack's query and key heads."""
    named = {
        "text_embeddings.weight": theirs["embed_text_tokens.weight"],
        "audio_embeddings.weight": theirs["depth_decoder.model.embed_tokens.weight"],
        "projection.weight": theirs["depth_decoder.model.inputs_embeds_projector.weight"],
        "codebook0_head.weight": theirs["lm_head.weight"],
        "audio_head": theirs["depth_decoder.codebooks_head.weight"],
    }
    for stack, owner in (("backbone", "backbone_model"), ("decoder", "depth_decoder.model")):
        named[f"{stack}.norm.scale"] = theirs[f"{owner}.norm.weight"]
        n = 0
        while f"{owner}.layers.{n}.input_layernorm.weight" in theirs:
            layer = {
                name.removeprefix(f"{owner}.layers.{n}."): value
                for name, value in theirs.items()
                if name.startswith(f"{owner}.layers.{n}.")
            }
            queries, keys = heads[stack]
            ours = {
                "attn.q_proj.weight": pairs_of_halves(layer["self_attn.q_proj.weight"], queries),
                "attn.k_proj.weight": pairs_of_halves(layer["self_attn.k_proj.weight"], keys),
                "attn.v_proj.weight": layer["self_attn.v_proj.weight"],
                "attn.output_proj.weight": layer["self_attn.o_proj.weight"],
                "mlp.w1.weight": layer["mlp.gate_proj.weight"],
                "mlp.w2.weight": layer["mlp.down_proj.weight"],
                "mlp.w3.weight": layer["mlp.up_proj.weight"],
                "sa_norm.scale": layer["input_layernorm.weight"],
                "mlp_norm.scale": layer["post_attention_layernorm.weight"],
            }
            named |= {f"{stack}.layers.{n}.{name}": value for name, value in ours.items()}
            n += 1
    return named


def kyutai_of(theirs: dict[str, np.ndarray], heads: int) -> dict[str, np.ndarray]:
    """A transformers Mimi of four strides and one residual layer under kyutai's names."""
    named = {}
    for name, value in theirs.items():
        head, _, last = name.rpartition(".")
        if name.startswith("downsample"):
            named["downsample.conv.conv.conv.weight"] = value
        elif name.startswith("upsample"):
            named["upsample.convtr.convtr.convtr.weight"] = value
        elif name.startswith(("encoder.layers", "decoder.layers")):
            half, _, place, *inner, _ = head.split(".")
            kind = "convtr" if half == "decoder" and place in ("2", "5", "8", "11") else "conv"
            named[".".join([half, "model", place, *inner, kind, kind, last])] = value
        elif name.startswith("quantizer"):
            named[_kyutai_quantizer(name)] = value
    for half in ("encoder", "decoder"):
        n = 0
        while f"{half}_transformer.layers.{n}.mlp.fc1.weight" in theirs:
            layer = f"{half}_transformer.layers.{n}"
            q, k, v = (theirs[f"{layer}.self_attn.{part}_proj.weight"] for part in "qkv")
            new = f"{half}_transformer.transformer.layers.{n}"
            named[f"{new}.self_attn.in_proj_weight"] = np.concatenate(
                [pairs_of_halves(q, heads), pairs_of_halves(k, heads), v]
            )
            named[f"{new}.self_attn.out_proj.weight"] = theirs[f"{layer}.self_attn.o_proj.weight"]
            named[f"{new}.linear1.weight"] = theirs[f"{layer}.mlp.fc1.weight"]
            named[f"{new}.linear2.weight"] = theirs[f"{layer}.mlp.fc2.weight"]
            for part in ("weight", "bias"):
                named[f"{new}.norm1.{part}"] = theirs[f"{layer}.input_layernorm.{part}"]
                named[f"{new}.norm2.{part}"] = theirs[f"{layer}.post_attention_layernorm.{part}"]
            named[f"{new}.layer_scale_1.scale"] = theirs[f"{layer}.self_attn_layer_scale.scale"]
            named[f"{new}.layer_scale_2.scale"] = theirs[f"{layer}.mlp_layer_scale.scale"]
            n += 1
    return named


def _kyutai_quantizer(name: str) -> str:
    spelling = {
        "semantic_residual_vector_quantizer": "rvq_first",
        "acoustic_residual_vector_quantizer": "rvq_rest",
        "codebook": "_codebook",
        "embed_sum": "embedding_sum",
        "initialized": "_initialized",
        "layers": "vq.layers",
    }
    return ".".join(spelling.get(part, part) for part in name.split("."))
