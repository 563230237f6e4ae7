"""The bench: methods compared on the same runs, on models of which the truth is known.

`trials` says which images are generated. `detecting` generates them and lets every detector score them, a `packet`
keeps every score with what it depends on, and `figures` computes from the scores alone whatever is reported. In the
same way `localizing` makes maps, a `map_packet` keeps them, and `map_figures` compares them with the true masks.
`remaking`, `mitigating` and `attacking` make pictures under mitigations. Every bench is made in parts (`base`), in this
process or on a Ray cluster (`running`). `selection` says which detector the other grounds would have chosen for one
that took no part.
"""
