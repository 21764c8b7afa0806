"""An Optuna objective as a trial: the process that calls it, and the worker's end of the connection to it.

The process has Optuna's own `Trial`, whose storage and sampler are the worker: they talk over one inherited socket.
The process has no connection to the database, and knows neither its address nor its password.
"""
