"""Write csm_tiny's tokenizer: one token per byte, and Llama 3's begin and end tokens.

python scripts/make_tiny_tokenizer.py csm_mlx/assets/tiny_tokenizer.json
"""

import sys

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers


def main(path: str) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<|begin_of_text|>", "<|end_of_text|>")])
    tokenizer.save(path)


if __name__ == "__main__":
    main(sys.argv[1])
