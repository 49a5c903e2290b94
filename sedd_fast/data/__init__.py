"""Text as blocks of tokens: sources, tokenizers, held-out text, prompts.

corpus = load_corpus(DataConfig(train="book.txt"), length=128)
x_0 = corpus.train.take(32).tokens  # (32, 128) int64

config      DataConfig: which text a run reads
corpus      load_corpus: from a DataConfig to blocks; blocks has their order
examples    prompts and completions as batches; example_rows reads their files, example_order has
            their order and packing, batches the batch, chat_templates the messages of a chat
sources     files, the built-in corpus, Hugging Face data sets; datasets has the named ones
files       UTF-8 text of files and its lines; json_lines reads objects from it
copies      named data sets from a copy on disk
tokenizers  make_tokenizer, load_tokenizer
prompts     text given to `infill`, and samples decoded to text
"""

from sedd_fast.data.config import DataConfig
from sedd_fast.data.corpus import Corpus, load_corpus
from sedd_fast.data.tokenizers import Tokenizer, load_tokenizer, make_tokenizer

__all__ = ["Corpus", "DataConfig", "Tokenizer", "load_corpus", "load_tokenizer", "make_tokenizer"]
