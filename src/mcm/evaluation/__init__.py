"""Measuring videos: Frechet distances of clips and frames, agreement with the prompt, amount of motion, and
the report.

Import the module that is needed (`mcm.evaluation.report` is light; `evaluator`, `fvd` and `clipsim` load
transformers):

    fvd        distance between two sets of clips in the features of a video network
    fid        distance between frames and a picture set in the features of CLIP
    clipsim    cosine between frames and the prompt
    motion     amount of movement, as a fraction of the teacher's
    bootstrap  intervals for all of them
    evaluator  streams generated clips through the chosen metrics and makes one row
    report     rows with their provenance: JSON and tables

None of these numbers stands alone. FVD rewards frame content more than motion (Ge et al. 2024, arXiv
2404.12391), so the motion ratio is always reported beside it; and a Frechet distance falls with the number of
samples, so two rows compare only at the same `n`, network and reference, all of which the report states.
"""
