"""Plain torch building blocks: numbers and tensors in, tensors out. Nothing here imports fairseq."""
