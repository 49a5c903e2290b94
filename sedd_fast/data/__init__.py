"""Text as blocks of tokens: sources, tokenizers, held-out text, prompts."""
