"""The verb `find`: does a model hold a given picture?

A picture is compared with controls, pictures like it that the model was not trained on. `measuring` says how well the
model restores them from noise, `judging` turns that into p-values, `work` does it in parts, and `verb` is the function.
"""
