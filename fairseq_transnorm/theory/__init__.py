"""Closed forms only: bounds and moments to hold measurements against."""
