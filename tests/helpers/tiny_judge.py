"""A causal language model of `transformers` small enough for a test, saved with its tokenizer."""

from pathlib import Path


def save_tiny_judge(directory: Path, context: int = 16) -> Path:
    """A randomly initialised GPT-2 over words, read back with `from_pretrained(directory)`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = ["<|endoftext|>", "<unk>", "the", "cat", "sat", "on", "a", "mat.", "dogs", "ran"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token=words[0], bos_token=words[0]
    )
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(words), n_positions=context, n_embd=16, n_layer=2, n_head=2,
        initializer_range=0.5, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
