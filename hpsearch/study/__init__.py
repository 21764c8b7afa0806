"""Study definitions: the study file that a user writes, its validated form, and the space of the study's points.

`definition` is the entry point: it reads a study file and returns a `StudyDefinition`, which gives points and trial
settings. The package uses neither the database nor tensors.
"""
