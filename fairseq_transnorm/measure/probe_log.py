"""The file in which training notes how memories and an induction head form."""

FILE = "probes.jsonl"
