"""Criterions; importing this package registers them (fairseq's spelling of the folder)."""
