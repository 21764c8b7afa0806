"""What a study is: a file that a user writes, checked into a definition, and the space of its points.

`definition` is where one comes in. Knows neither database nor tensors.
"""
