"""Canaries: marked pictures that a trainer adds to a training set, to see how many repetitions the training tolerates.

A secret seed draws pictures and names that nobody has seen. Some of them, the canaries, are added to the training set
at known repetitions. The others, the reserve, never are. `drawing` draws them, `manifest` says which ones there are,
`planting` adds them to a folder and takes them out again, `exposure` is the statistics and the result, and `asking`
measures a trained model.
"""
