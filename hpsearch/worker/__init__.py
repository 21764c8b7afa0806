"""One worker process: claims points, trains them in lanes, writes each epoch, ends trials.

`process` sets up the process and `worker` has its main loop. A study's name and `WorkerOptions` come in; epochs,
results, checkpoints and rounds go out to the database and the artifact store, a life sign and metrics to the machine.
Workers share state only through `store`.
"""
