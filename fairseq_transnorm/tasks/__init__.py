"""Tasks; importing this package registers them."""
