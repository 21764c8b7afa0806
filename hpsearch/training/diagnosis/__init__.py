"""The diagnosis of a trial: numbers of its network's state after an epoch, and what they say about its training.

`gradient_state` measures lanes on a fixed batch of training images and changes nothing; `hidden_units` watches their
non-linearities. `verdict` says in words what is wrong with a trial, from its curve and its diagnoses.
"""
