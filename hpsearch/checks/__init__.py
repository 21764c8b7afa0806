"""What is looked at before a search: the data, and one network for each shape that the study names.

`suite` runs all checks in the order of their cost. Each returns findings (`finding`): what was found, what was
expected, what to look at, and the line of the study file that would fix it. A user's network runs in a process of its
own (`isolation`). Nothing here knows a database, and nothing reads the test split.
"""
