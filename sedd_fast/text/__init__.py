"""Text in, text out: a trained model with its tokenizer.

network   the network and the tokenizer that a name stands for: run directory, export, hub name
requests  a text to complete, as a template or as its parts
drawing   draw: the samples of requests, as text
bound     bound_text: the likelihood bound of a text
"""
