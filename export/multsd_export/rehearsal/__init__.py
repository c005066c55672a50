"""Rehearse an export at true size with random weights, where the real weights are not at hand.

Structure, graphs, sizes and memory are the real ones; pictures are noise. `python -m multsd_export.rehearsal FAMILY`.
"""
