"""Write musicgen_tiny's tokenizer: one token per byte after T5's padding, end and unknown tokens.

python scripts/make_tiny_t5_tokenizer.py musicgen_mlx/assets/tiny_tokenizer.json
"""

import sys

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

SPECIAL = ("<pad>", "</s>", "<unk>")


def main(path: str) -> None:
    vocab = {name: index for index, name in enumerate((*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(path)


if __name__ == "__main__":
    main(sys.argv[1])
