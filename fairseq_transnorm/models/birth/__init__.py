"""Birth of a transformer: the models in which induction heads and their associative memories are followed."""
