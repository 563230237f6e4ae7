"""The bench: detectors compared on the same runs, on models of which the truth is known.

`trials` says which images are generated, `detecting` generates them and lets every detector score them, a `packet`
keeps every score with what it depends on, and `figures` computes from the scores alone whatever is reported.
"""
