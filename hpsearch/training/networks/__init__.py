"""The networks that can be trained: logistic regression, multilayer perceptron, LeNet, and a user's own module.

`build` makes a `Network` from model settings. A `Network` maps parameters and images to class scores, for one trial or
for all lanes at once; the parameters are tensors that the caller owns.
"""
