"""DeepScaleLM: BERT with variance-preserving initialisation and residual weights, at any depth."""
