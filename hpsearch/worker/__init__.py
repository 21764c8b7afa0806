"""One worker process: claims points, trains them in lanes, writes each epoch, ends trials.

`entry` begins the process. `lanes/` has the loop that trains hpsearch's own networks, `programs/` the one whose trials
are programs. A study's name and `WorkerOptions` come in; epochs, results, checkpoints and rounds go out to the database
and the artifact store, a life sign and metrics to the machine. Workers share state only through the store.
"""
