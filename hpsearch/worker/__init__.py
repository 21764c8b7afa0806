"""One worker process: claims points, trains them in lanes, writes each epoch, ends trials.

`process` is the program, `worker` its loop; all that two workers share goes through `store`.
"""
