"""Quantization: how values are chosen for the block formats that plm_edge/formats.py reads.

rows.py         rows into blocks, with or without knowledge of their inputs
blocks.py       how each format chooses its scales, and its bytes
feedback.py     rounding whose errors are made good by the columns that follow
moments.py      what the matrices of a model multiply in a text
sensitivity.py  what the rounding of one matrix does to the logits
mix.py          the best formats for a size
fitted.py       all of it together: a source of packed rows
"""
