"""From YAML and overrides to checked values and built objects.

`compose` reads, `validate` checks everything at once, `build` makes the objects. Nothing above this
room touches Hydra's `instantiate`.
"""
