"""Networks: SEDD's transformer, networks of p(x_0 | x_t), the autoregressive baseline."""
