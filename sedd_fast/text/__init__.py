"""Text in, text out: a trained model with its tokenizer.

model     load a TextModel: sample, infill, bits_per_token
network   the network and the tokenizer that a name stands for: run directory, export, hub name
requests  a text to complete, as a template or as its parts
drawing   draw: the samples of requests, as text
bound     bound_text: the likelihood bound of a text
"""

from sedd_fast.text.bound import TextBound
from sedd_fast.text.model import DrawOptions, TextModel, load

__all__ = ["DrawOptions", "TextBound", "TextModel", "load"]
