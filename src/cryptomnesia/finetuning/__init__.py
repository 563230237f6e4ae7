"""The verb `finetune`: from which step on does a training return its own pictures?

`checkpoints` finds the checkpoints of a training, `comparing` says which images are copies of training pictures,
`work` measures every checkpoint in parts, `course` is what comes out, and `verb` is the function.
`canaries` says how many repetitions a training tolerates.
"""
